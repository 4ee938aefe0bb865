"""RFC 9002's appendices A and B with NewReno, slow and obvious.

Keeps every packet ever sent with its fate, and searches all of them for each answer.
Sizes are bytes, times microseconds, packet ranges half-open. ECN, MTU probes, pacing and
memory limits are left out. Choices of ours, where the RFC leaves one:

* The window grows only by packets that were in flight while it was full: no room for a
  datagram in congestion avoidance, half used in slow start (RFC 9002 7.8).
* Congestion avoidance counts acknowledged bytes instead of dividing (RFC 3465).
* An ACK frame that reports a congestion event does not also grow the window.
* A PTO hands out the oldest unacknowledged frames, and counts as a transmission.
"""

from collections import deque
from dataclasses import dataclass, field

GRANULARITY = 1000
LARGEST_RTT = 2**30
DATAGRAM = 1200
MINIMUM_WINDOW = 2 * DATAGRAM
INITIAL_WINDOW = 10 * DATAGRAM
INITIAL, HANDSHAKE, APPLICATION = 0, 1, 2
SPACES = (INITIAL, HANDSHAKE, APPLICATION)
PROTOCOL_VIOLATION = 0x0A
FRAME_ENCODING_ERROR = 0x07


@dataclass
class Packet:
    pn: int
    time_sent: int
    size: int
    ack_eliciting: bool
    in_flight: bool
    frames: list
    fate: str = "outstanding"  # then "acked", "lost" or "discarded"
    time_lost: int = 0
    reported: bool = False  # no longer asked whether its loss was spurious
    counts: bool = False  # it was in flight while the window was full
    old_path: bool = False


@dataclass
class SpaceState:
    packets: dict = field(default_factory=dict)
    next_pn: int = 0
    largest_acked: int = -1
    loss_time: int | None = None
    last_ack_eliciting: int = 0
    probes: int = 0
    skip_at: int | None = None
    skipped: deque = field(default_factory=lambda: deque(maxlen=4))
    barrier: int = -1  # packets up to here made one persistent congestion already
    path_start: int = 0

    def outstanding(self):
        return [p for p in self.packets.values() if p.fate == "outstanding"]

    def ack_eliciting(self):
        return [p for p in self.outstanding() if p.ack_eliciting]


class RecoveryModel:
    def __init__(self, *, is_client=True, initial_rtt=333000):
        self.is_client = is_client
        self.initial_rtt = initial_rtt
        self.spaces = [SpaceState() for _ in SPACES]
        self.handshake_confirmed = False
        self.has_handshake_keys = False
        self.handshake_acked = False
        self.blocked = False
        self.max_ack_delay = 25000
        self.pto_count = 0
        self.timer_base = 0
        self.acked = []
        self.lost = []
        self.events = self.persistent_events = self.spurious = 0
        self.reset_rtt()
        self.reset_congestion()

    # RTT

    def reset_rtt(self):
        self.latest = self.minimum = 0
        self.smoothed = self.initial_rtt
        self.variance = self.initial_rtt // 2
        self.first_sample = None

    def update_rtt(self, latest, ack_delay, now):
        latest = min(max(latest, 1), LARGEST_RTT)
        self.latest = latest
        if self.first_sample is None:
            self.first_sample = now
            self.minimum = self.smoothed = latest
            self.variance = latest // 2
            return
        self.minimum = min(self.minimum, latest)
        adjusted = latest
        if latest >= self.minimum + ack_delay:
            adjusted = latest - ack_delay
        self.variance = (3 * self.variance + abs(self.smoothed - adjusted)) // 4
        self.smoothed = (7 * self.smoothed + adjusted) // 8

    def pto(self, space):
        pto = self.smoothed + max(4 * self.variance, GRANULARITY)
        return pto + self.max_ack_delay if space == APPLICATION else pto

    # Congestion

    def reset_congestion(self):
        self.cwnd = INITIAL_WINDOW
        self.ssthresh = None
        self.recovery_start = None
        self.acked_bytes = 0

    @property
    def bytes_in_flight(self):
        return sum(p.size for s in self.spaces for p in s.outstanding() if p.in_flight)

    def in_slow_start(self):
        return self.ssthresh is None or self.cwnd < self.ssthresh

    def window_is_full(self):
        if self.in_slow_start():
            return self.bytes_in_flight >= self.cwnd // 2
        return self.bytes_in_flight + DATAGRAM > self.cwnd

    def congestion_event(self, time_sent, now):
        if self.recovery_start is not None and time_sent <= self.recovery_start:
            return False
        self.recovery_start = now
        self.ssthresh = max(self.cwnd // 2, MINIMUM_WINDOW)
        self.cwnd = self.ssthresh
        self.acked_bytes = 0
        self.events += 1
        return True

    def grow(self, size):
        if self.in_slow_start():
            step = size
            if self.ssthresh is not None:
                step = min(size, self.ssthresh - self.cwnd)
            self.cwnd += step
            size -= step
        self.acked_bytes += size or 0
        while size and self.acked_bytes >= self.cwnd:
            self.acked_bytes -= self.cwnd
            self.cwnd += DATAGRAM

    # Sending

    def send(self, space, size, now, *, ack_eliciting=True, in_flight=True, frames=()):
        s = self.spaces[space]
        pn = s.next_pn
        frames = [(f[0], space, *f[1:]) for f in frames]
        in_flight = in_flight or ack_eliciting
        s.packets[pn] = Packet(pn, now, size, ack_eliciting, in_flight, frames)
        if ack_eliciting:
            s.last_ack_eliciting = now
            self.timer_base = now
            s.probes = max(s.probes - 1, 0)
        if in_flight and self.window_is_full():
            for p in s.outstanding():
                p.counts = not p.old_path
        s.next_pn += 1
        if s.next_pn == s.skip_at:
            s.skipped.append(s.next_pn)
            s.skip_at = None
            s.next_pn += 1
        return pn

    def skip(self, space, distance):
        s = self.spaces[space]
        s.skip_at = s.next_pn + max(distance, 1)

    # Acknowledgements

    def ack(self, space, ranges, now, ack_delay=0):
        s = self.spaces[space]
        if not ranges or any(start >= end for start, end in ranges):
            return FRAME_ENCODING_ERROR
        numbers = {n for start, end in ranges for n in range(start, end)}
        if max(numbers) >= s.next_pn or numbers & set(s.skipped):
            return PROTOCOL_VIOLATION
        self.count_spurious(s, numbers, now)
        s.largest_acked = max(s.largest_acked, *numbers)
        newly = [p for p in s.outstanding() if p.pn in numbers]
        if not newly:
            return 0
        growth = 0
        for p in newly:
            p.fate = "acked"
            self.acked += p.frames
            after = self.recovery_start is None or p.time_sent > self.recovery_start
            if p.in_flight and p.counts and after:
                growth += p.size
        if self.is_client and space == HANDSHAKE:
            self.handshake_acked = True
        self.take_sample(space, newly, max(numbers), ack_delay, now)
        if self.detect_lost(space, now):
            growth = 0
        self.grow(growth)
        s.probes = 0
        if self.peer_validated():
            self.pto_count = 0
        self.timer_base = now
        return 0

    def count_spurious(self, s, numbers, now):
        for p in s.packets.values():
            if p.fate == "lost" and not p.reported:
                if p.time_lost < now - 3 * self.pto(INITIAL):
                    p.reported = True  # Forgotten.
                elif p.pn in numbers:
                    p.reported = True
                    self.spurious += 1

    def take_sample(self, space, newly, largest, ack_delay, now):
        newest = max(newly, key=lambda p: p.pn)
        if newest.pn != largest or not any(p.ack_eliciting for p in newly):
            return
        if newest.pn < self.spaces[space].path_start:
            return
        if space == INITIAL:
            ack_delay = 0
        elif self.handshake_confirmed:
            ack_delay = min(ack_delay, self.max_ack_delay)
        self.update_rtt(now - newest.time_sent, ack_delay, now)

    def detect_lost(self, space, now):
        s = self.spaces[space]
        longer = max(self.latest, self.smoothed)
        delay = max(longer + longer // 8, GRANULARITY)
        s.loss_time = None
        lost = []
        for p in s.outstanding():
            if p.pn > s.largest_acked:
                continue
            if p.pn <= s.largest_acked - 3 or p.time_sent <= now - delay:
                lost.append(p)
            elif p.ack_eliciting or p.in_flight:
                when = p.time_sent + delay
                s.loss_time = when if s.loss_time is None else min(s.loss_time, when)
        persistent = False
        for p in lost:
            p.fate = "lost"
            p.time_lost = now
            self.lost += p.frames
            persistent |= self.makes_persistent(s, p)
        changed = False
        in_flight = [p.time_sent for p in lost if p.in_flight]
        if in_flight:
            changed = self.congestion_event(max(in_flight), now)
        if persistent:
            self.cwnd = MINIMUM_WINDOW
            self.recovery_start = None
            self.acked_bytes = 0
            self.persistent_events += 1
            self.minimum = self.latest
            changed = True
        return changed

    def ends_run(self, p):
        return (
            p.ack_eliciting
            and p.in_flight
            and not p.old_path
            and self.first_sample is not None
            and p.time_sent > self.first_sample
        )

    def makes_persistent(self, s, last):
        if not self.ends_run(last):
            return False
        first = last
        pn = last.pn - 1
        while pn > s.barrier:
            p = s.packets.get(pn)
            if p is None and pn not in s.skipped:
                break
            if p is not None and p.fate != "lost":
                break
            if p is not None and self.ends_run(p):
                first = p
            pn -= 1
        duration = 3 * (self.pto(INITIAL) + self.max_ack_delay)
        if last.time_sent - first.time_sent <= duration:
            return False
        s.barrier = last.pn
        return True

    # Time

    def peer_validated(self):
        return not self.is_client or self.handshake_acked or self.handshake_confirmed

    def loss_timer(self):
        times = [(s.loss_time, i) for i, s in enumerate(self.spaces)]
        return min((t for t in times if t[0] is not None), default=None)

    def pto_timer(self):
        if self.blocked:
            return None
        backoff = 2 ** min(self.pto_count, 20)
        busy = [i for i in SPACES if self.spaces[i].ack_eliciting()]
        if not busy:
            if self.peer_validated():
                return None
            space = HANDSHAKE if self.has_handshake_keys else INITIAL
            return self.timer_base + self.pto(INITIAL) * backoff, space
        due = [
            (self.spaces[i].last_ack_eliciting + self.pto(i) * backoff, i)
            for i in busy
            if i != APPLICATION or self.handshake_confirmed
        ]
        return min(due, default=None)

    def next_timeout(self):
        due = self.loss_timer() or self.pto_timer()
        return due[0] if due else None

    def on_timeout(self, now):
        due = self.loss_timer()
        if due:
            if due[0] > now:
                return "none"
            self.detect_lost(due[1], now)
            self.timer_base = now
            return "loss"
        due = self.pto_timer()
        if due is None or due[0] > now:
            return "none"
        self.pto_count += 1
        self.timer_base = now
        for i, s in enumerate(self.spaces):
            if not s.ack_eliciting():
                continue
            s.probes = 2 if i == due[1] else 1
            s.last_ack_eliciting = now
            carriers = [p for p in s.ack_eliciting() if p.frames]
            for p in carriers[: s.probes]:
                self.lost += p.frames
                p.frames = []
        self.spaces[due[1]].probes = max(self.spaces[due[1]].probes, 1)
        return "probe"

    # Turns

    def discard_space(self, space, now):
        s = self.spaces[space]
        for p in s.outstanding():
            p.fate = "discarded"
        for p in s.packets.values():
            p.reported = True
        s.loss_time = None
        s.probes = 0
        self.pto_count = 0
        self.timer_base = now

    def on_retry(self, now):
        s = self.spaces[INITIAL]
        if s.outstanding() and self.pto_count == 0:
            rtt = max(now - s.outstanding()[0].time_sent, 1)
            self.initial_rtt = min(rtt, LARGEST_RTT)
        for p in s.outstanding():
            p.fate = "discarded"
            self.lost += p.frames
        s.loss_time = None
        s.probes = 0
        self.pto_count = 0
        self.timer_base = now
        self.reset_congestion()
        self.reset_rtt()

    def on_path_change(self, now):
        s = self.spaces[APPLICATION]
        for p in s.packets.values():
            p.in_flight = p.counts = False
            p.old_path = True
        s.path_start = s.next_pn
        self.pto_count = 0
        self.timer_base = now
        self.reset_congestion()
        self.reset_rtt()

    # Answers

    def drain(self):
        result = self.acked, self.lost
        self.acked, self.lost = [], []
        return result

    def tracked(self, space):
        return [(p.pn, p.time_sent, p.size) for p in self.spaces[space].outstanding()]

    def state(self):
        return {
            "cwnd": self.cwnd,
            "ssthresh": self.ssthresh,
            "bytes_in_flight": self.bytes_in_flight,
            "congestion_events": self.events,
            "persistent_events": self.persistent_events,
            "latest_rtt": self.latest,
            "smoothed_rtt": self.smoothed,
            "rtt_variance": self.variance,
            "min_rtt": self.minimum,
            "pto_count": self.pto_count,
            "probes": [s.probes for s in self.spaces],
            "next_pn": [s.next_pn for s in self.spaces],
            "spurious_losses": self.spurious,
        }
