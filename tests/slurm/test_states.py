"""What SLURM says of jobs: squeue's word first, accounting's for what squeue has forgotten."""

import pytest

from slurm.states import GONE, UNKNOWN, State, states


def test_a_job_that_waits_again_is_not_what_accounting_says(programs):
    """Accounting has one whose node failed as NODE_FAIL for some seconds."""
    programs.put("squeue", "7|RUNNING|None|n2|0:05\\n")
    programs.put("sacct", "7|NODE_FAIL|n1|1:00\\n")

    assert states(["7"]) == {"7": State("RUNNING", "", "n2", "0:05")}
    assert len(programs.calls) == 1


def test_what_squeue_has_forgotten(programs):
    programs.put("squeue", "7_1|PENDING|Resources||0:00\\n")
    programs.put("sacct", "7_0|CANCELLED by 0|n1|1:00\\n")

    assert states(["7_0", "7_1", "8"]) == {
        "7_0": State("CANCELLED", "", "n1", "1:00"),
        "7_1": State("PENDING", "Resources", "", "0:00"),
        "8": GONE,
    }


@pytest.mark.parametrize("there", [True, False])
def test_a_controller_that_does_not_answer_ends_no_job(programs, there):
    if there:
        programs.put("squeue", "7|RUNNING|None|n2|0:05\\n", status=1)
    programs.put("sacct", "7|FAILED|n1|1:00\\n")

    assert states(["7"]) == {"7": UNKNOWN}


@pytest.mark.parametrize("there", [True, False])
def test_a_cluster_without_accounting(programs, there):
    programs.put("squeue")
    if there:
        programs.put("sacct", "7|FAILED|n1|1:00\\n", status=1)

    assert states(["7"]) == {"7": GONE}
