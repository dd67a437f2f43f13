"""Writing a step's changes of the slot tables, whatever their number and lengths."""

from __future__ import annotations

from array import array

import pytest
import torch

pytest.importorskip("supported_triton")

from rootlet.kernels.gpu.slot_writes import write_runs, write_runs_reference

SLOTS, TOKENS, PAGES = 40, 700, 90


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def tables(device):
    return [torch.zeros(SLOTS, columns, dtype=torch.int32, device=device) for columns in (TOKENS, PAGES)]


CASES = {
    "a page each": ([], [(slot, slot, [slot + 1000]) for slot in range(1, 20)]),
    "a prompt": ([(3, 0, array("i", range(500)))], [(3, 0, [9, 8, 2**31 - 1])]),
    "to the edges": ([(SLOTS - 1, TOKENS - 5, range(5)), (0, 0, (7,))], [(SLOTS - 1, 0, range(PAGES))]),
    "one token": ([(1, 2, [5])], []),
    "of many lengths": ([(i, i, array("i", range(i * 16, i * 32))) for i in range(SLOTS)], [(5, 5, [])]),
    "empty runs": ([(1, 2, [])], [(1, 2, ())]),
    "nothing": ([], []),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("block", [16, 256])
def test_runs_land_where_they_should(name, block, device):
    found, expected = tables(device), tables(device)
    write_runs(*found, *CASES[name], block=block)
    write_runs_reference(*expected, *CASES[name])
    assert all(map(torch.equal, found, expected))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the interpreter would touch all of the table")
def test_tables_of_more_than_2_31_entries_are_reached(device):
    tokens = torch.zeros(2**11 + 1, 2**20, dtype=torch.int32, device=device)
    write_runs(tokens, tables(device)[1], [(2**11, 5, [1, 2, 3])], [])
    assert tokens[2**11, 4:9].tolist() == [0, 1, 2, 3, 0]
    assert tokens.count_nonzero() == 3


def test_refusals(device):
    tokens, pages = tables(device)
    for wrong in (pages.long(), pages[0], pages.t()):
        with pytest.raises(ValueError, match="slot table"):
            write_runs(tokens, wrong, [(1, 2, [5])], [])
