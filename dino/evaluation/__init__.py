"""What a frozen backbone is worth."""
