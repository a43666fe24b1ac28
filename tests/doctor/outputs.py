"""What hl-smi prints: the shapes of public outputs of software 1.16 to 1.24, with made-up
numbers."""

from __future__ import annotations

BAR = "+-----------------------------------------------------------------------------+"
HEAD = """\
|-------------------------------+----------------------+----------------------+
| AIP  Name        Persistence-M| Bus-Id        Disp.A | Volatile Uncor-Events|
| Fan  Temp  Perf  Pwr:Usage/Cap|         Memory-Usage | AIP-Util  Compute M. |
|===============================+======================+======================|"""
PROCESSES = """\
| Compute Processes:                                               AIP Memory |
|  AIP       PID   Type   Process name                             Usage      |
|=============================================================================|"""
END = "+=============================================================================+"


def query_output(driver="1.21.0-ca59b5a", cards=8, name="HL-225"):
    head = "index, name, driver_version, memory.total [MiB], memory.used [MiB], utilization.aip [%], module_id"
    rows = [f"{i}, {name}, {driver}, 98304 MiB, 768 MiB, 0 %, {(i + 2) % 8}" for i in range(cards)]
    return "\n".join([head, *rows]) + "\n"


def map_output(cards=8):
    return "\n".join(["index, module_id", *(f"{i}, {(i + 2) % 8}" for i in range(cards))]) + "\n"


def firmware_output(version="1.21.0", cards=8):
    line = "        Firmware [SPI] Version          : Preboot version hl-gaudi2-{}-fw-59.2.1-sec-9 (Mar 02 2025)"
    return "".join(f"[{i}] AIP (accel{i})\n{line.format(version)}\n\n" for i in range(cards))


def table_output(
    driver="1.21.0-ca59b5a", cards=8, held=(), name="HL-225", used="768MiB", smi="1.21.0"
):
    rows = [
        row
        for i in range(cards)
        for row in (
            f"|   {i}  {name:<20}N/A  | 0000:33:00.0     N/A |                   0  |",
            f"| N/A   28C   P0   93W /  600W | {used:>8} /  98304MiB |     0%            0% |",
        )
    ]
    rows_used = [
        f"|   {i}        {4711 + i}   C      python3.10                                30000MiB |"
        if i in held
        else f"|   {i}        N/A   N/A    N/A                                       N/A     |"
        for i in range(cards)
    ]
    versions = [
        f"| HL-SMI Version:                              hl-{smi}-fw-50.0.0.0          |",
        f"| Driver Version:                                     {driver}          |",
        f"| Nic Driver Version:                                 {driver}          |",
    ]
    return "\n".join([BAR, *versions, HEAD, *rows, BAR, PROCESSES, *rows_used, END]) + "\n"


# Name -> (text, [(index, name, driver, used)], [(card, pid, name)]); the deviations from
# `table_output` that were seen.
SHAPES = {
    "1.16, rows of processes without a bar at their end, one cut in two": (
        """\
| HL-SMI Version:                              hl-1.16.0-fw-50.0.0.0          |
| Driver Version:                                     1.16.0-0a1b2c3          |
|-------------------------------+----------------------+----------------------+
| AIP  Name        Persistence-M| Bus-Id        Disp.A | Volatile Uncorr. ECC |
|===============================+======================+======================|
|   0  HL-225              N/A  | 0000:11:00.0     N/A |                   0  |
| N/A   26C   N/A    90W / 600W |  27000MiB / 98304MiB |     0%           N/A |
|-------------------------------+----------------------+----------------------+
|   1  HL-225              N/A  | 0000:12:00.0     N/A |                   0  |
| N/A   26C   N/A    90W / 600W |  31000MiB / 98304MiB |     0%           N/A |
|-------------------------------+----------------------+----------------------+
| Compute Processes:                                               AIP Memory |
|  AIP       PID   Type   Process name                             Usage      |
|=============================================================================|
|   0       600001     C   ray::ServeRepli                         26000MiB
|   1       2000002     C   python
                                 30000Mib
+=============================================================================+
""",
        [
            (0, "HL-225", "1.16.0-0a1b2c3", "27000 MiB"),
            (1, "HL-225", "1.16.0-0a1b2c3", "31000 MiB"),
        ],
        [(0, 600001, "ray::ServeRepli"), (1, 2000002, "python")],
    ),
    "1.18, no part on processes, the bar right after N/A": (
        """\
| HL-SMI Version:                              hl-1.18.0-fw-50.0.0.0          |
| Driver Version:                                     1.18.0-0a1b2c3          |
|===============================+======================+======================|
|   0  HL-325              N/A  | 0000:11:00.0     N/A |                   0  |
| N/A   41C   N/A   250W / 900W |    672MiB / 131072MiB |     0%           N/A|
|-------------------------------+----------------------+----------------------+
""",
        [(0, "HL-325", "1.18.0-0a1b2c3", "672 MiB")],
        [],
    ),
    "1.20, hl-smi newer than the driver, memory in use and no process": (
        table_output("1.19.1-0a1b2c3", 1, smi="1.20.0", used="17000MiB"),
        [(0, "HL-225", "1.19.1-0a1b2c3", "17000 MiB")],
        [],
    ),
    "1.21, another board": (
        table_output("1.20.1-0a1b2c3", 2, name="HL-325L", used="672MiB"),
        [(0, "HL-325L", "1.20.1-0a1b2c3", "672 MiB"), (1, "HL-325L", "1.20.1-0a1b2c3", "672 MiB")],
        [],
    ),
    "1.23, a card of PCI Express": (
        table_output("1.23.0-0a1b2c3", 1, name="HL-288E", smi="1.23.0"),
        [(0, "HL-288E", "1.23.0-0a1b2c3", "768 MiB")],
        [],
    ),
    "1.24, inferred": (
        table_output("1.24.1-0a1b2c3", 1, smi="1.24.0"),
        [(0, "HL-225", "1.24.1-0a1b2c3", "768 MiB")],
        [],
    ),
    "no driver, or a container without devices": ("no AIPs available\n", [], []),
}
