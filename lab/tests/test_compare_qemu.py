"""The judge of lab/compare-qemu: it finds the seam that was planted, to the nanosecond. No host is booted."""

import contextlib
import copy
import io
import json
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from continuo_lab.beside_qemu import campaign, cli, evaluation, guest, inside, kernel_trace, page  # noqa: E402
from continuo_lab.beside_qemu.columns import ADVANCE, COLUMNS, FREEZE  # noqa: E402
from continuo_lab.beside_qemu.evaluation import NotMeasured, Spread, figures_of, summary_of, values_of  # noqa: E402
from continuo_lab.beside_qemu.lines import MONOTONIC, REALTIME, NotALine, Pvclock, Timekeeper, skew  # noqa: E402
from continuo_lab.beside_qemu.qmp import Qmp  # noqa: E402
from continuo_lab.beside_qemu.vms import MoveFailed  # noqa: E402
from continuo_lab.errors import LabError  # noqa: E402

_MUL, _SHIFT = 0x80000000, 0  # 2 ticks a ns
_MS = 10**6
_STOP, _RESUME = 10**10, 10**10 + 200 * _MS  # host ticks: 100 ms


def page_bytes(tsc, time, version=2):
    return struct.pack("<IIQQIbBxx", version, 0, tsc % 2**64, time, _MUL, _SHIFT, 1)


def timekeeper_bytes(mode=2, with_max_cycles=True, realtime_ns=1000 * 10**9):
    """A vDSO page whose MONOTONIC is the clocksource itself, and REALTIME that and `realtime_ns`."""
    shift = 23
    bases = [(0, 0)] * 12
    bases[REALTIME], bases[MONOTONIC] = (realtime_ns // 10**9, realtime_ns % 10**9 << shift), (0, 0)
    head = struct.pack("<IiQ", 4, mode, 0) + (struct.pack("<Q", 12345) if with_max_cycles else b"")
    head += struct.pack("<QII", 2**64 - 1, 1 << shift, shift)
    return (head + b"".join(struct.pack("<QQ", *base) for base in bases)).ljust(256, b"\0")


def made_move(*, tsc_lost=0, kvm_lost=0, skew_ticks=0, vcpus=2, offset=-(10**9), late_page_ns=0, told=None):
    """A move of which the truth is known: ticks that the TSC lost, ns that kvmclock lost, ticks that the last vCPU is
    ahead, ns by which kvmclock's line moves behind the resume."""
    offsets = [offset] * vcpus
    there = [offset - tsc_lost + (skew_ticks if number == vcpus - 1 else 0) for number in range(vcpus)]
    # The source's line goes through (guest TSC of _STOP - 1000, 4 s); what the destination publishes lies on it, but
    # for what was lost.
    at = _STOP - 1000
    before = page_bytes(at + offset, 4 * 10**9)
    published = [_RESUME - 300 + there[number] for number in range(vcpus)]
    time = 4 * 10**9 + (_RESUME - 300 - at) // 2 - kvm_lost
    record = {
        "kind": "move", "seconds": 1.0, "load": 1.0,
        "source": {"offsets": offsets, "pages": [before.hex()] * vcpus, "timekeeper": timekeeper_bytes().hex()},
        "last_exits": {str(number): _STOP - number for number in range(vcpus)},
        "first_entries": {str(number): _RESUME + 50 * number for number in range(vcpus)},
        "events": [
            # A trial's, which a later one replaces; and another process's line of this guest.
            {"tsc": _RESUME - 900, "vcpu": 0, "of": "destination", "offset": 7},
            *({"tsc": _RESUME - 500, "vcpu": number, "of": "destination", "offset": there[number] % 2**64}
              for number in range(vcpus)),
            *({"tsc": _RESUME - 100, "vcpu": number, "of": "destination",
               "page": [4, published[number] % 2**64, time, _MUL, _SHIFT, 1]} for number in range(vcpus)),
            # Behind the entry: what the guest has never entered with.
            {"tsc": _RESUME + 10**6, "vcpu": 0, "of": "destination",
             "page": [6, published[0] % 2**64, time + late_page_ns, _MUL, _SHIFT, 1]},
        ],
        "realtime_before": [_STOP - 10**6, 250],
        "host_realtime": [[tsc, truth(tsc), 10] for tsc in (_STOP - 10**6, _RESUME + 10**10)],
        "told": told or {},
    }  # fmt: skip
    record["destination"] = {
        "offsets": there, "timekeeper": timekeeper_bytes().hex(),
        "pages": [page_bytes(published[number], time, 8).hex() for number in range(vcpus)],
    }  # fmt: skip
    record["destination_later"] = copy.deepcopy(record["destination"])
    record["destination_later"]["pages"][0] = page_bytes(published[0], time + late_page_ns, 8).hex()
    page_there = page_bytes(published[0], time, 8).hex()
    record["watched"] = [(_STOP - 5000, timekeeper_bytes().hex(), page_there)]  # on its way: not looked at
    record["watched"] += [(_RESUME + at, timekeeper_bytes().hex(), page_there) for at in (4 * _MS, 2000 * _MS)]
    return json.loads(json.dumps(record))


def truth(tsc):
    """The host's REALTIME, of which the guest is 250 ns ahead before a move."""
    return 1000 * 10**9 + 4 * 10**9 + (tsc - (_STOP - 1000)) // 2 - 250


class Lines(unittest.TestCase):
    def test_a_pvclock_page_is_read_as_a_guest_reads_it(self):
        line = Pvclock.parse(page_bytes(1000, 5000))
        self.assertEqual(line.at(1000), 5000)
        self.assertEqual(line.at(1009), 5004)  # 9 ticks / 2 = 4.5, rounded down
        self.assertEqual(line.at(990), 4995, "the line goes on before its own instant")

    def test_a_page_may_have_wrapped(self):
        line = Pvclock.parse(page_bytes(2**64 - 10, 5000))
        self.assertEqual(line.at(10), 5010)

    def test_a_shift_to_the_right_comes_before_the_factor(self):
        line = Pvclock(2, 0, 0, 0xC0000000, -1, 1)
        self.assertEqual(line.at(7), (3 * 0xC0000000) >> 32)

    def test_a_page_that_nobody_has_written_is_not_a_line(self):
        with self.assertRaises(NotALine):
            Pvclock.parse(bytes(32))

    def test_both_layouts_of_the_vdso_are_known_by_their_mask(self):
        for with_max_cycles in (False, True):
            keeper = Timekeeper.parse(timekeeper_bytes(with_max_cycles=with_max_cycles))
            self.assertEqual(keeper.at(MONOTONIC, 7_000_000_123), 7_000_000_123)
            self.assertEqual(keeper.at(REALTIME, 5), 1000 * 10**9 + 5)
            self.assertEqual(keeper.clocksource, "kvm-clock")

    def test_another_layout_is_refused(self):
        with self.assertRaises(NotALine):
            Timekeeper.parse(struct.pack("<IiQQQII", 2, 2, 0, 1, 2, 3, 4) + bytes(256))

    def test_offsets_near_the_wrap_are_close_to_each_other(self):
        self.assertEqual(skew([-3, 4]), 7)
        self.assertEqual(skew([2**63 - 1, -(2**63)]), 1)
        self.assertEqual(skew([5]), 0)


class Moves(unittest.TestCase):
    def test_nothing_lost_is_exactly_nothing(self):
        figures = figures_of(made_move())
        self.assertEqual({clock.lost for clock in figures.clocks.values()}, {0})
        self.assertEqual({clock.seam(ADVANCE) for clock in figures.clocks.values()}, {0})
        self.assertEqual((figures.skew_ticks, figures.apart, figures.wrong_for), (0, 0, 0))
        self.assertEqual(figures.blackout, 100 * _MS)

    def test_planted_losses_are_found_for_each_clock(self):
        for ticks, ns in ((2, 0), (0, 1), (-4000, 777), (200 * _MS, 100 * _MS), (123_456, -5)):
            figures = figures_of(made_move(tsc_lost=ticks, kvm_lost=ns))
            self.assertEqual(figures.clocks["tsc"].lost, ticks // 2, (ticks, ns))
            self.assertEqual(figures.clocks["kvmclock"].lost, ns, (ticks, ns))
            self.assertEqual(figures.clocks["monotonic"].lost, ns, (ticks, ns))
            self.assertEqual(figures.clocks["kvmclock"].seam(ADVANCE), -ns)
            self.assertEqual(figures.apart, ticks // 2 - ns)

    def test_a_frozen_clock_that_lost_the_whole_blackout_has_no_seam(self):
        figures = figures_of(made_move(tsc_lost=200 * _MS, kvm_lost=100 * _MS))
        self.assertEqual(figures.clocks["kvmclock"].seam(FREEZE), 0)
        self.assertEqual(figures.clocks["tsc"].seam(FREEZE), 0)
        figures = figures_of(made_move(tsc_lost=200 * _MS, kvm_lost=99 * _MS))
        self.assertEqual(figures.clocks["kvmclock"].seam(FREEZE), 1 * _MS, "it ran while nobody did")

    def test_monotonic_follows_the_guests_clocksource(self):
        record = made_move(tsc_lost=2000, kvm_lost=5)
        for side in ("source", "destination", "destination_later"):
            record[side]["timekeeper"] = timekeeper_bytes(mode=1).hex()
        # Its line reads 2 ticks a ns as ns: what matters is that it is the TSC that was lost.
        self.assertEqual(figures_of(record).clocks["monotonic"].lost, 2000)

    def test_skew_between_vcpus_is_found_in_ticks(self):
        self.assertEqual(figures_of(made_move(skew_ticks=3)).skew_ticks, 3)
        self.assertEqual(figures_of(made_move(skew_ticks=-1, vcpus=4)).skew_ticks, 1)

    def test_what_the_guest_entered_with_counts_and_not_what_came_later(self):
        figures = figures_of(made_move(kvm_lost=10, late_page_ns=40))
        self.assertEqual(figures.clocks["kvmclock"].lost, 10)
        self.assertEqual(figures.moved_later, 40)

    def test_the_sources_last_line_counts(self):
        record = made_move()
        line = [6, (_STOP - 500 - 10**9) % 2**64, 4 * 10**9 + 250 + 33, _MUL, _SHIFT, 1]
        for vcpu in (0, 1):  # 33 ns ahead of the page that was read before the move
            record["events"].append({"tsc": _STOP - 400, "vcpu": vcpu, "of": "source", "page": line})
        self.assertEqual(figures_of(record).clocks["kvmclock"].lost, 33)

    def test_counters_may_wrap(self):
        figures = figures_of(made_move(offset=2**63 - 10**10, tsc_lost=64, kvm_lost=32))
        self.assertEqual((figures.clocks["tsc"].lost, figures.clocks["kvmclock"].lost), (32, 32))

    def test_a_vcpu_that_was_not_seen_is_an_error(self):
        record = made_move()
        del record["first_entries"]["1"]
        with self.assertRaisesRegex(NotMeasured, "first_entries: vCPU 1"):
            figures_of(record)

    def test_two_vms_at_once_are_an_error(self):
        record = made_move()
        record["first_entries"]["1"] = _STOP - 5
        with self.assertRaises(NotMeasured):
            figures_of(record)

    def test_the_certificates_gap_is_held_against_the_lines(self):
        told = {"certificate": {"gap": {"ns": 100 * _MS - 7}}}
        record = made_move(tsc_lost=200 * _MS, kvm_lost=100 * _MS, told=told)
        self.assertEqual(values_of(figures_of(record), FREEZE)["kvmclock_beside_certificate_ns"], 7)
        self.assertNotIn("kvmclock_beside_certificate_ns", values_of(figures_of(record), ADVANCE))


class Realtime(unittest.TestCase):
    def of(self, looks, lost=100 * _MS):
        """`looks`: host ticks behind the resume, and how far REALTIME has been set since."""
        record = made_move(tsc_lost=2 * lost, kvm_lost=lost)
        page_there = record["watched"][-1][2]
        record["watched"] = [
            (_RESUME + at, timekeeper_bytes(realtime_ns=1000 * 10**9 + step).hex(), page_there) for at, step in looks
        ]
        return figures_of(record)

    def test_its_error_is_that_of_the_line(self):
        record = made_move(kvm_lost=777)
        errors = evaluation.realtime_errors(record, _RESUME)
        self.assertEqual([(tsc - _RESUME, error) for tsc, error in errors],
                         [(4 * _MS, 250 - 777), (2000 * _MS, 250 - 777)])  # fmt: skip

    def test_it_is_wrong_until_it_is_right_and_stays(self):
        lost = 100 * _MS
        figures = self.of([(2 * _MS, 0), (8 * _MS, lost - 200), (20 * _MS, lost + 300), (90 * _MS, lost)])
        self.assertEqual((figures.wrong_for, figures.observed), (4 * _MS, 45 * _MS))

    def test_right_for_a_moment_is_not_repaired(self):
        self.assertIsNone(self.of([(2, 0), (8, 100 * _MS), (20, 97 * _MS)]).wrong_for)

    def test_repaired_before_the_first_look_counts_to_that_look(self):
        self.assertEqual(self.of([(6 * _MS, 100 * _MS), (90 * _MS, 100 * _MS)]).wrong_for, 3 * _MS)

    def test_what_it_was_wrong_by_before_the_move_is_not_the_moves(self):
        self.assertEqual(self.of([(2, 0), (8, 10)], lost=0).wrong_for, 0)

    def test_overdone_is_wrong_too(self):
        self.assertIsNone(self.of([(2, 5 * _MS), (8, 5 * _MS)], lost=0).wrong_for)

    def test_a_destination_that_nobody_looked_at_is_an_error(self):
        with self.assertRaises(NotMeasured):
            self.of([(-5, 0)])


class Watched(unittest.TestCase):
    """What `continuo watch` in the guest says beside what the lines say."""

    def judged(self, figures, events, backward=0):
        back = {"CLOCK_MONOTONIC": backward, "CLOCK_REALTIME": 18}
        return evaluation.watched_of(figures, {"events": events, "back": back})

    def event(self, figures, seam, bound, shift=0):
        counter = [figures.counter[0] - 10 + shift, figures.counter[1] + 10 + shift]
        return {"counter": counter, "seam_ns": seam, "bound_ns": bound}

    def test_the_guest_agrees_within_its_bound_or_does_not(self):
        figures = figures_of(made_move(tsc_lost=10_000, kvm_lost=2000))  # 5000 ns and 2000 ns
        self.assertEqual(figures.seen_seam, 3000)
        for seam, agree in ((3000, 1), (3000 + 52, 1), (3000 - 52, 1), (3000 + 53, 0), (0, 0)):
            watched = self.judged([figures], [self.event(figures, seam, 50)])
            self.assertEqual((watched.agree, watched.disagree), (agree, 1 - agree), seam)

    def test_another_moves_event_does_not_count(self):
        figures = figures_of(made_move(tsc_lost=10_000, kvm_lost=2000))
        watched = self.judged([figures], [self.event(figures, 3000, 50, shift=10**12)])
        self.assertEqual((watched.agree, watched.unseen, watched.unseen_seam_ns), (0, 1, 3000))

    def test_a_guest_is_asked_about_its_own_moves_only(self):
        move = {**made_move(tsc_lost=10_000, kvm_lost=2000), "column": "qemu"}
        figures = figures_of(move)
        booted = {"kind": "guest", "column": "qemu", "release": "6.12"}
        asked = {"kind": "guest_watched", "column": "qemu", "back": {}, "events": [self.event(figures, 3000, 50)]}
        watched = summary_of(COLUMNS["qemu"], [booted, move, booted, move, asked]).watched
        self.assertEqual((watched.agree, watched.disagree, watched.unseen), (1, 0, 0))
        self.assertIsNone(summary_of(COLUMNS["qemu"], [booted, move]).watched)
        watched = summary_of(COLUMNS["qemu"], [booted, move, asked, booted, move, asked]).watched
        self.assertEqual((watched.events, watched.agree), (2, 2))

    def test_realtime_may_be_set_back_and_monotonic_may_not(self):
        self.assertEqual(self.judged([], [], backward=2).backward, 2)

    def test_of_the_guests_document_its_awk_sends_what_is_compared(self):
        """The program runs here; the document has every key that the real one has round these."""
        back = {"clock": "CLOCK_MONOTONIC", "readings": 5, "backward_within_cpu": 1, "backward_across_cpus": 2,
                "worst_backward": {"first": {"counter_after": 1}, "second": {"counter_before": 2}}}  # fmt: skip
        seams = [{"clock": clock, "seam_ns": seam, "bound_ns": 7, "jump_ns": 1}
                 for clock, seam in (("CLOCK_MONOTONIC", -123), ("CLOCK_REALTIME", 9))]  # fmt: skip
        event = {"number": 1, "at_ns": 5, "counter_before": 2**63, "counter_after": 2**63 + 9, "clocks": seams,
                 "skew": [], "picture": {"CLOCK_MONOTONIC": [[1, 2, 3]]}}  # fmt: skip
        document = {"clocks": [back], "events_total": 1, "events": [event], "ntp": None}
        with tempfile.TemporaryDirectory() as folder:
            program, file = Path(folder, "watched.awk"), Path(folder, "watch.json")
            program.write_bytes(guest._WATCHED)
            file.write_text(json.dumps(document, indent=2))
            done = subprocess.run(["busybox", "awk", "-f", str(program), str(file)], capture_output=True, text=True)
        self.assertEqual(done.stderr, "")
        self.assertEqual(inside.watched_in(done.stdout), {
            "events": [{"counter": [2**63, 2**63 + 9], "seam_ns": -123, "bound_ns": 7}],
            "back": {"CLOCK_MONOTONIC": 3},
        })  # fmt: skip


class Summaries(unittest.TestCase):
    def records(self, column, lost):
        return [{**made_move(kvm_lost=ns, tsc_lost=2 * ns), "column": column, "move": number}
                for number, ns in enumerate(lost, 1)]  # fmt: skip

    def test_median_and_worst_are_values_that_were_measured(self):
        spread = Spread((5, -40, 1, 7))
        self.assertEqual((spread.median, spread.worst), (5, -40))
        self.assertEqual(Spread((3,)).median, 3)

    def test_one_bad_move_in_thirty_is_the_worst_and_not_averaged(self):
        lost = [0] * 29 + [123_456_789]
        summary = summary_of(COLUMNS["advance"], self.records("advance", lost))
        figure = summary.as_json()["figures"]["kvmclock_seam_ns"]
        self.assertEqual((figure["median"], figure["worst"]), (0, -123_456_789))
        self.assertEqual(len(figure["values"]), 30)
        self.assertIn("0 / -123 ms", page.cell(summary, "kvmclock_seam_ns"))

    def test_what_was_not_repaired_is_never_a_number(self):
        records = self.records("qemu", [100 * _MS, 100 * _MS])
        summary = summary_of(COLUMNS["qemu"], records)
        self.assertEqual(summary.never_right, 2)
        self.assertEqual(page.cell(summary, "realtime_wrong_ns"), "not repaired in 1.00 s")
        repaired = timekeeper_bytes(realtime_ns=1000 * 10**9 + 100 * _MS).hex()
        records[0]["watched"].insert(2, [_RESUME + 6 * _MS, repaired, records[0]["watched"][-1][2]])
        records[0]["watched"][-1][1] = repaired
        summary = summary_of(COLUMNS["qemu"], records)
        self.assertEqual(page.cell(summary, "realtime_wrong_ns"), "3.00 ms / not repaired in 1.00 s (1)")

    def test_failures_are_counted(self):
        records = [*self.records("freeze", [0]), {"kind": "failed", "column": "freeze", "move": 2, "why": "x"},
                   {"kind": "guest_saw", "column": "freeze", "backward": 3, "loops": 9}]  # fmt: skip
        summary = summary_of(COLUMNS["freeze"], records)
        self.assertEqual((summary.moves, summary.failed, summary.backward), (1, ["x"], 3))
        self.assertIsNone(summary_of(COLUMNS["advance"], records))


class Pages(unittest.TestCase):
    def summaries(self):
        made = Summaries()
        return [summary_of(COLUMNS[name], made.records(name, [lost, 0]))
                for name, lost in (("qemu", 100 * _MS), ("advance", 0))]  # fmt: skip

    def test_lengths_are_short_and_never_zero_where_they_are_not(self):
        for value, text in ((0, "0"), (1, "1 ns"), (-9999, "-9999 ns"), (10_000, "10.0 us"), (999_499, "999 us"),
                            (1_234_567, "1.23 ms"), (-61_526_226, "-61.5 ms"), (12_345_678_901, "12.3 s")):  # fmt: skip
            self.assertEqual(page.shown(value), text)
        self.assertEqual(page.shown(40_000, "ticks"), "40000 ticks")

    def test_tables_are_aligned(self):
        for block in page.tables(self.summaries()).split("\n\n"):
            rows = [line for line in block.splitlines() if line.startswith("|")]
            self.assertLessEqual(len({len(row) for row in rows}), 1, block)

    def test_only_what_stands_between_the_marks_is_replaced(self):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "page.md")
            file.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nbehind\n")
            page.write_into(file, "new\n")
            self.assertEqual(file.read_text(), f"before\n{page.BEGIN}\nnew\n{page.END}\nbehind\n")
            file.write_text("no marks\n")
            with self.assertRaises(LabError):
                page.write_into(file, "new\n")

    def test_the_page_of_the_project_has_the_marks(self):
        text = (campaign.ROOT / "docs/compare-qemu.md").read_text()
        self.assertEqual((text.count(page.BEGIN), text.count(page.END)), (1, 1))

    def test_the_picture_has_a_dot_for_each_move_and_puts_zero_on_the_left(self):
        picture = page.svg(self.summaries())
        self.assertEqual(picture.count("<circle"), 2 * 2 * 4 - 1)  # one REALTIME was not repaired: an arrow
        self.assertLess(page._x(0), page._x(1))
        self.assertLess(page._x(1), page._x(2))

    def test_data_cannot_end_the_pages_script(self):
        if not page._CHART_JS.exists():
            self.skipTest(f"{page._CHART_JS} is not here")
        text = page.html({"about": "</script><!--", "columns": []})
        self.assertNotIn("</script><!--", text)


class Traces(unittest.TestCase):
    TEXT = """# tracer: nop
   CPU 0/KVM-161     (    160) [000] d....  235728592503: kvm_pvclock_update: vcpu_id 1, pvclock { version 6, tsc_timestamp 0x2927a61c01, system_time 0xfa40a6c6c, tsc_to_system_mul 0xc537a69a, tsc_shift -1, flags 0x3 }
 qemu-system-x86-160     (    160) [001] .....  235683190653: kvm_write_tsc_offset: vcpu=0 prev=1 next=18446744014739484982
        continuo-7       (-------) [001] .....  9: kvm_write_tsc_offset: vcpu=1 prev=1 next=2
           <...>-161     (    160) [000] d..1.  300: kvm_entry: vcpu 1, rip 0xffffffffa840a1a0
           <...>-161     (    160) [000] d..1.  310: kvm_entry: vcpu 1, rip 0xffffffffa840a1a0
           <...>-99      (     98) [000] d..1.  200: kvm_exit: vcpu 0 reason hlt rip 0x1 info1 0x0
           <...>-99      (     98) [000] d..1.  220: kvm_exit: vcpu 0 reason intr rip 0x1 info1 0x0
           <...>-99      (     98) [000] d..1.  210: kvm_entry: vcpu 0, rip 0x1
           <...>-50      (     49) [000] d..1.  999: kvm_exit: vcpu 0 reason intr rip 0x1 info1 0x0
"""

    def test_pages_and_offsets_in_the_order_of_time(self):
        events = kernel_trace.clock_events(self.TEXT)
        self.assertEqual([event["tsc"] for event in events], [9, 235683190653, 235728592503])
        self.assertEqual([event["pid"] for event in events], [7, 160, 160])
        self.assertEqual(events[1]["offset"], 18446744014739484982)
        self.assertEqual(events[2]["page"], [6, 0x2927A61C01, 0xFA40A6C6C, 0xC537A69A, -1, 3])

    def test_the_last_exit_and_the_first_entry_of_the_right_processes(self):
        exits, entries = kernel_trace.last_exits_first_entries(self.TEXT, 98, 160)
        self.assertEqual((exits, entries), ({0: 220}, {1: 300}))


class Layouts(unittest.TestCase):
    SAID = """guest: linux 6.12
guest: code 87200000
guest: symbol ffffffff81000000 T _stext
guest: symbol ffffffff832dc080 D _vdso_data
guest: symbol ffffffff83a03000 b hv_clock_boot
guest: ready
"""

    def test_symbols_become_guest_physical_addresses(self):
        layout = inside.layout_in(self.SAID)
        self.assertEqual((layout.timekeeper, layout.pvclock), (0x894DC080, 0x89C03000))

    def test_a_guest_that_hides_them_is_an_error(self):
        with self.assertRaisesRegex(MoveFailed, "hv_clock_boot"):
            inside.layout_in(self.SAID.replace("hv_clock_boot", "x"))


class Runs(unittest.TestCase):
    def test_a_run_goes_on_where_it_was(self):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "records")
            store = campaign.Store(file)
            for number in (1, 2):
                store.add({"kind": "move", "column": "qemu", "move": number})
            for _ in range(3):
                store.add({"kind": "failed", "column": "freeze", "move": 1, "why": ""})
            again = campaign.Store(file)
            request = campaign.Request("x86-svm", "6.12", ("qemu", "freeze", "qemu-ntp"), 30, 2, 128, 3072, "q", "c")
            self.assertEqual(campaign.missing(request, again), [
                {"name": "qemu", "first": 3, "moves": 30}, {"name": "qemu-ntp", "first": 1, "moves": 5},
            ])  # fmt: skip

    def test_records_of_another_kernel_are_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "records")
            campaign.Store(file).add({"kind": "request", "host": "x86-svm", "kernel": "6.1", "cpus": 2,
                                      "memory_mib": 128, "qemu": "qemu-system-x86_64"})  # fmt: skip
            said = io.StringIO()
            with contextlib.redirect_stderr(said):
                code = cli.main(["--evaluate", "--resume", str(file)])
            self.assertEqual(code, 125)
            self.assertIn("another kernel: 6.1", said.getvalue())

    def test_a_member_is_taken_out_of_an_initramfs(self):
        with tempfile.TemporaryDirectory() as folder:
            from continuo_lab.cpio import CpioWriter
            out = io.BytesIO()
            archive = CpioWriter(out)
            archive.file("/a/first", b"12345")
            archive.file("/a/second", b"678")
            archive.finish()
            file = Path(folder, "archive")
            file.write_bytes(out.getvalue())
            self.assertEqual(campaign.cpio_member(file, "a/second"), b"678")
            with self.assertRaises(LabError):
                campaign.cpio_member(file, "a/third")

    def test_every_service_of_a_column_is_known(self):
        for column in COLUMNS.values():
            for service in column.services:
                self.assertIn(service, guest._SERVICES)
                self.assertIn(service, campaign._SERVICE_FILES)


class Monitor(unittest.TestCase):
    """A QEMU that answers each command by its name, after an event."""

    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.path = f"{scratch.name}/qmp"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.addCleanup(listener.close)
        listener.bind(self.path)
        listener.listen()
        threading.Thread(target=self._serve, args=(listener,), daemon=True).start()

    @staticmethod
    def _serve(listener):
        connection, _ = listener.accept()
        with connection, connection.makefile("rw", encoding="utf-8") as lines:
            print(json.dumps({"QMP": {}}), file=lines, flush=True)
            for line in lines:
                print(json.dumps({"event": "STOP"}), file=lines)
                print(json.dumps({"return": json.loads(line)["execute"]}), file=lines, flush=True)

    def test_each_thread_gets_its_own_answer(self):
        qmp = Qmp(self.path, 10)
        self.addCleanup(qmp.close)
        wrong = []

        def ask(command):
            wrong.extend(answer for answer in (qmp.ask(command) for _ in range(2000)) if answer != command)

        threads = [threading.Thread(target=ask, args=(command,)) for command in ("query-status", "human-monitor-command")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])


if __name__ == "__main__":
    unittest.main()
