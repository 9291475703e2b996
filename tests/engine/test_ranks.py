"""A rank or the launcher dies or hangs: the whole job ends, nobody is left behind, and the same command goes on."""

from pathlib import Path

import pytest

from chaos.ranks import (
    HANG_SECONDS,
    LOOP_FRAME,
    STEPS,
    complete,
    difference,
    disturb,
    kill_launcher,
    kill_rank,
    last_step,
    stop_rank,
    write_text,
)

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    write_text(folder)
    complete(folder, "straight")
    return folder


def test_a_lost_rank_costs_only_the_steps_since_the_last_save(folder):
    code, said = disturb(folder, "disturbed", kill_rank)
    assert code != 0
    assert "another process of this job is gone or does not answer" in said
    assert last_step(folder, "disturbed") < STEPS

    code, said = disturb(folder, "disturbed", stop_rank)
    assert code != 0
    assert "resuming from step 40" in said
    assert "rank 0 (process" in said and f"no progress for {HANG_SECONDS} s since step" in said
    assert "rank 1 (process" in said and "DOES NOT ANSWER" in said
    assert "most recent call first" in said and LOOP_FRAME in said

    code, said = disturb(folder, "disturbed", kill_launcher)
    assert code == -9
    assert "resuming from step 80" in said
    # Its ranks were asked to stop, and saved.
    assert "saved. Run the same command again" in said

    complete(folder, "disturbed")
    assert difference(folder, "straight", "disturbed") is None
