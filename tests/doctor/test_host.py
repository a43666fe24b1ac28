"""What of a host's set-up is noticed; all of it notes, each with its remedy."""

import pytest

from dino.doctor.host import (
    LOADER,
    check_firmware,
    check_huge_pages,
    check_kernel,
    check_loader,
    check_logs,
    read_firmware,
)
from tests.doctor.outputs import firmware_output

INTEL, AMD = "vendor_id : GenuineIntel\n", "vendor_id : AuthenticAMD\n"
KERNELS = [  # (kernel, its parameters, processor, what is missing)
    ("6.8.0-138-generic", "ro iommu=pt intel_iommu=on", INTEL, None),
    ("6.8.0-138-generic", "ro intel_iommu=on iommu.passthrough=1", INTEL, None),
    ("6.8.0-138-generic", "ro quiet", INTEL, "iommu=pt intel_iommu=on is"),
    ("6.11.0", "iommu=pt", INTEL, "intel_iommu=on is"),
    ("6.8.0", "intel_iommu=on,sm_on iommu=ptx", INTEL, "iommu=pt intel_iommu=on is"),
    ("6.8.0", "iommu=pt", AMD, None),
    ("6.14.0", "", AMD, "iommu=pt is"),
    ("5.15.0-139-generic", "", INTEL, None),
    ("5.14.0-427.el9", "", INTEL, None),
    ("", "", "", None),
]


@pytest.mark.parametrize(("release", "command", "processor", "missing"), KERNELS)
def test_kernels_that_need_iommu_passthrough(release, command, processor, missing):
    found = check_kernel(release, command, processor)
    if missing is None:
        assert found == []
    else:
        (note,) = found
        assert (
            note.cause.startswith(missing)
            and "numbers are garbled" in note.cause
            and not note.blocking
        )
        assert "GRUB" in note.remedy


def test_huge_pages():
    text = "MemTotal: 1 kB\nHugePages_Total:   {}\nHugePages_Free: 3\nHugepagesize:       2048 kB\n"
    facts, problems = check_huge_pages(text.format(15000))
    assert facts == [("huge pages", "15000 of 2048 kB, 3 free")] and problems == []
    facts, (note,) = check_huge_pages(text.format(0))
    assert "vm.nr_hugepages" in note.remedy and not note.blocking
    assert check_huge_pages("") == ([], []) == check_huge_pages("garbage")


def test_variables_of_the_loader_that_are_unset_or_name_nothing():
    usual = {name: path for name, (path, _) in LOADER.items()}
    assert check_loader(usual, lambda path: True) == []
    (note,) = check_loader({}, lambda path: path == usual["GC_KERNEL_PATH"])
    assert "synStatus 26" in note.cause and not note.blocking
    assert note.remedy == f"export GC_KERNEL_PATH={usual['GC_KERNEL_PATH']}"
    (note,) = check_loader(
        {**usual, "GC_KERNEL_PATH": ""}, lambda path: path != usual["GC_KERNEL_PATH"]
    )
    assert note.cause.startswith("GC_KERNEL_PATH is unset") and "habanalabs.sh" in note.remedy
    (note,) = check_loader(
        {**usual, "GC_KERNEL_PATH": "/mine.so:/theirs.so"}, lambda path: path != "/mine.so"
    )
    assert "names /mine.so, which does not exist" in note.cause and "theirs" not in note.cause


@pytest.mark.parametrize(
    ("environment", "there", "writable", "said"),
    [
        ({"HABANA_LOGS": "/logs"}, True, True, None),
        ({"HABANA_LOGS": "/logs"}, False, False, "HABANA_LOGS=/logs is not writable"),
        ({"HABANA_LOGS": "/logs"}, True, False, "HABANA_LOGS=/logs is not writable"),
        ({}, True, False, "HABANA_LOGS is unset, and /var/log/habana_logs is not writable"),
        ({}, True, True, None),
        ({}, False, False, None),
    ],
)
def test_a_folder_of_logs_that_cannot_be_written_to(environment, there, writable, said):
    found = check_logs(environment, lambda path: there, lambda path: writable)
    assert [note.cause.startswith(said) and not note.blocking for note in found] == (
        [] if said is None else [True]
    )


def test_firmware_is_read_from_the_lines_with_spi():
    assert read_firmware(firmware_output("1.21.2", cards=3)) == ["1.21.2"] * 3
    assert read_firmware("") == [] == read_firmware("Firmware [FIT] Version : 1.2.3\nSPI: unknown")


@pytest.mark.parametrize(
    ("versions", "driver", "said"),
    [
        (["1.24.1"] * 2, "1.24.1-b336d5e", None),
        (["1.24.0"], "1.24.1-b336d5e", None),
        (["1.24.0"], "1.22.0", None),
        (["1.21.2"], None, None),
        (["1.21.2"] * 8, "1.24.1-b336d5e", "possible cause of failures"),
        (
            ["1.24.1", "1.21.2", "1.24.1"],
            "1.24.1",
            "firmware differs: 1.21.2 on 1 card, 1.24.1 on 2 cards",
        ),
    ],
)
def test_firmware_that_is_older_than_the_driver_or_differs(versions, driver, said):
    (fact,), problems = check_firmware(versions, driver)
    assert versions[0] in fact.value
    assert [said in note.cause and not note.blocking for note in problems] == (
        [] if said is None else [True]
    )
    assert check_firmware([], driver)[1] == []
