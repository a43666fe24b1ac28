"""One self-contained page that shows what a backbone makes of a set of images."""
