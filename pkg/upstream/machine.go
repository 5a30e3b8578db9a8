package upstream

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

// phase is what the machine is at.
type phase string

const (
	soliciting phase = "soliciting"
	requesting phase = "requesting"
	bound      phase = "bound"
	renewing   phase = "renewing"
	rebinding  phase = "rebinding"
	verifying  phase = "verifying" // a Rebind after a restart, or when the link was down
	releasing  phase = "releasing"
	released   phase = "released"
)

// What servers cannot make shorter or more: the time until a renewal, and the
// advertisements that are remembered.
const (
	minRenew   = 5 * time.Second
	maxOffers  = 8
	maxBackoff = 5 * time.Minute
)

// machine is the requesting router of RFC 8415 §18.2 for one IA_PD. It has no
// clock, no socket and no file: what happens is handed to it with the time, and it
// says what to send (wake), when to be called again (next) and what it has (kept).
//
//	soliciting ─→ requesting ─→ bound ─→ renewing ─→ rebinding ─→ soliciting
//	     └────(rapid commit)──────↑ ↑────────┴──────────┘
//	restart, link up: verifying ──┘                 releasing ─→ released
type machine struct {
	kept
	hint   uint8
	random *rand.Rand

	phase    phase
	exchange exchange // while the phase has one
	offers   []answer
	asking   []netip.Prefix // of the offer that is requested
	refusals int            // since it was bound
	maxRT    time.Duration  // SOL_MAX_RT

	counts  Counts
	changed bool     // leases differ from what was taken last
	dirty   bool     // so does kept
	notes   []string // for the log
}

// begin starts, or starts anew when the link was away: what it has is verified,
// otherwise it asks.
func (m *machine) begin(now time.Time) {
	m.expire(now)
	switch {
	case m.phase == releasing || m.phase == released:
	case len(m.leases) == 0:
		m.solicit(now)
	case m.phase != verifying || m.exchange.sent > 1:
		m.start(verifying, dhcpv6.MessageTypeRebind, verifyTiming, now)
		m.exchange.at = now.Add(m.upTo(solMaxDelay))
	}
}

// release gives back what it has.
func (m *machine) release(now time.Time) {
	m.expire(now)
	if len(m.leases) == 0 || len(m.server) == 0 {
		m.forget()
		return
	}
	m.start(releasing, dhcpv6.MessageTypeRelease, releaseTiming, now)
}

// forget ends a release.
func (m *machine) forget() {
	m.phase, m.exchange = released, exchange{}
	m.leases, m.wanted, m.server, m.t1, m.t2, m.key = nil, nil, nil, time.Time{}, time.Time{}, nil
	m.changed, m.dirty = true, true
}

// solicit looks for servers, later the more often they have refused.
func (m *machine) solicit(now time.Time) {
	wait := m.upTo(solMaxDelay)
	if m.refusals > 0 {
		wait += min(time.Second<<min(m.refusals, 16), maxBackoff)
	}
	longest := solMaxRT
	if m.maxRT > 0 {
		longest = m.maxRT
	}
	m.offers = nil
	m.start(soliciting, dhcpv6.MessageTypeSolicit, timing{initial: time.Second, longest: longest}, now)
	m.exchange.at = now.Add(wait)
}

// start begins an exchange; its first message is due at once.
func (m *machine) start(p phase, kind dhcpv6.MessageType, t timing, now time.Time) {
	id := m.random.Uint32()
	m.phase = p
	m.exchange = exchange{kind: kind, timing: t, at: now, xid: dhcpv6.TransactionID{byte(id >> 16), byte(id >> 8), byte(id)}}
}

func (m *machine) upTo(d time.Duration) time.Duration {
	return time.Duration(m.random.Float64() * float64(d))
}

// next is when wake has something to do.
func (m *machine) next() time.Time {
	var at time.Time
	sooner := func(t time.Time) {
		if !t.IsZero() && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	if m.exchange.kind != 0 {
		sooner(m.exchange.at)
	}
	switch m.phase {
	case bound:
		sooner(m.t1)
		sooner(m.t2)
	case renewing:
		sooner(m.t2)
	}
	for _, l := range m.leases {
		sooner(l.Valid)
	}
	return at
}

// wake does what is due, and returns the message to send, nil for none.
func (m *machine) wake(now time.Time) []byte {
	m.expire(now)
	due := func(t time.Time) bool { return !t.IsZero() && !now.Before(t) }
	if x := &m.exchange; x.kind != 0 && due(x.at) && x.over(now) {
		m.giveUp(now)
	}
	switch {
	case (m.phase == bound || m.phase == renewing) && due(m.t2):
		m.start(rebinding, dhcpv6.MessageTypeRebind, rebindTiming, now)
	case m.phase == bound && due(m.t1):
		m.start(renewing, dhcpv6.MessageTypeRenew, renewTiming, now)
	case m.phase == soliciting && m.exchange.sent > 0 && len(m.offers) > 0 && due(m.exchange.at):
		m.request(now) // the time to collect advertisements is over (§18.2.1)
	}
	if m.exchange.kind == 0 || !due(m.exchange.at) {
		return nil
	}
	m.exchange.send(now, m.random.Float64())
	m.counts.Sent++
	return m.question(now).bytes()
}

// question is the message of the exchange.
func (m *machine) question(now time.Time) question {
	q := question{kind: m.exchange.kind, xid: m.exchange.xid, client: m.duid, iaid: m.iaid, elapsed: now.Sub(m.exchange.began)}
	switch m.phase {
	case renewing, releasing:
		q.server = m.server
	case requesting:
		q.server, q.prefixes = m.offers[0].server, m.asking
		return q
	case soliciting:
		q.hint = m.hint
		for _, p := range m.wanted {
			if m.hint == 0 || p.Bits() == int(m.hint) {
				q.prefixes = append(q.prefixes, p)
			}
		}
	}
	for _, l := range m.leases {
		if !slices.Contains(q.prefixes, l.Prefix) && len(q.prefixes) < maxPrefixes {
			q.prefixes = append(q.prefixes, l.Prefix)
		}
	}
	return q
}

// giveUp ends an exchange that nobody answers.
func (m *machine) giveUp(now time.Time) {
	switch m.phase {
	case requesting:
		m.refuse(now)
	case verifying: // what is known goes on to count (§18.2.12)
		m.phase, m.exchange = bound, exchange{}
	case releasing:
		m.note("no server answers the RELEASE of %s", m.list())
		m.forget()
	}
}

// request asks the best server of those that advertised.
func (m *machine) request(now time.Time) {
	slices.SortStableFunc(m.offers, func(a, b answer) int {
		if a.preference != b.preference {
			return int(b.preference) - int(a.preference)
		}
		return m.worth(b) - m.worth(a)
	})
	m.asking = nil
	for _, p := range m.offers[0].pd.prefixes {
		if p.valid > 0 {
			m.asking = append(m.asking, p.prefix)
		}
	}
	m.start(requesting, dhcpv6.MessageTypeRequest, requestTiming, now)
}

// worth counts what is good in an offer: a prefix that we had, one of the right
// length.
func (m *machine) worth(a answer) int {
	n := 0
	for _, p := range a.pd.prefixes {
		switch {
		case p.valid == 0:
		case slices.Contains(m.wanted, p.prefix):
			n += 4
		case m.hint != 0 && p.prefix.Bits() <= int(m.hint):
			n += 2
		default:
			n++
		}
	}
	return n
}

// refuse goes on to the next server, or begins anew.
func (m *machine) refuse(now time.Time) {
	m.offers = m.offers[1:]
	if len(m.offers) > 0 {
		m.request(now)
		return
	}
	m.refusals++
	m.solicit(now)
}

// receive takes a datagram.
func (m *machine) receive(b []byte, now time.Time) {
	m.expire(now)
	m.counts.Received++
	a, err := parse(b, m.iaid)
	if err != nil {
		m.counts.Malformed++
		return
	}
	if a.pd != nil {
		m.counts.Refused += uint64(a.pd.refused)
	}
	if !bytes.Equal(a.client, m.duid) || a.server == nil {
		m.counts.Stray++
		return
	}
	if a.kind == dhcpv6.MessageTypeReconfigure {
		if !m.reconfigure(a, b, now) {
			m.counts.Stray++
		}
		return
	}
	if m.exchange.kind == 0 || m.exchange.sent == 0 || a.xid != m.exchange.xid || !m.take(a, now) {
		m.counts.Stray++
	}
}

// take takes an answer, and tells whether it was one that it waits for.
func (m *machine) take(a answer, now time.Time) bool {
	if m.phase == soliciting && a.kind == dhcpv6.MessageTypeAdvertise {
		m.limit(a)
		m.offer(a, now)
		return true
	}
	if a.kind != dhcpv6.MessageTypeReply {
		return false
	}
	switch m.phase {
	case soliciting:
		if !a.rapid {
			return false
		}
	case requesting:
		if !bytes.Equal(a.server, m.offers[0].server) {
			return false
		}
	case renewing, releasing:
		if !bytes.Equal(a.server, m.server) {
			return false
		}
	}
	m.limit(a)
	if m.phase == releasing { // whatever it says (§18.2.10.2)
		m.note("released %s", m.list())
		m.forget()
		return true
	}
	if a.status != iana.StatusSuccess { // it is asked again later (§18.2.10)
		return true
	}
	switch m.phase {
	case soliciting:
		if a.pd.some() {
			m.bind(a, true, now)
		}
	case requesting:
		if a.pd.some() {
			m.bind(a, true, now)
		} else {
			m.refuse(now)
		}
	case renewing, rebinding, verifying:
		switch {
		case a.pd == nil: // asked again (§18.2.10.1)
		case a.pd.status == iana.StatusNoBinding:
			m.note("the server knows nothing of %s; it is asked anew", m.list())
			m.ask(a, now)
		case a.pd.status == iana.StatusSuccess && len(a.pd.prefixes) > 0:
			m.bind(a, false, now)
		}
	}
	return true
}

// limit takes SOL_MAX_RT, which counts whatever else the answer says (§18.2.9).
func (m *machine) limit(a answer) {
	if a.solMaxRT < minSolMaxRT || a.solMaxRT > maxSolMaxRT {
		return
	}
	m.maxRT = time.Duration(a.solMaxRT) * time.Second
	if m.phase == soliciting {
		m.exchange.longest = m.maxRT
	}
}

// offer remembers an advertisement.
func (m *machine) offer(a answer, now time.Time) {
	if a.status != iana.StatusSuccess || !a.pd.some() {
		return
	}
	m.offers = slices.DeleteFunc(m.offers, func(o answer) bool { return bytes.Equal(o.server, a.server) })
	if len(m.offers) < maxOffers {
		m.offers = append(m.offers, a)
	}
	// Later than the first time it is the first that counts (§18.2.1).
	if a.preference == 255 || m.exchange.sent > 1 {
		m.request(now)
	}
}

// ask requests what it has from a server that does not know of it (§18.2.10.1).
func (m *machine) ask(a answer, now time.Time) {
	m.offers, m.asking = []answer{a}, nil
	for _, l := range m.leases {
		m.asking = append(m.asking, l.Prefix)
	}
	m.start(requesting, dhcpv6.MessageTypeRequest, requestTiming, now)
}

// bind takes the prefixes of an answer. All is false when what it does not mention
// stays as it is (§18.2.10.1).
func (m *machine) bind(a answer, all bool, now time.Time) {
	before := m.leases
	end := func(s uint32) time.Time {
		if s == infinity {
			return time.Time{}
		}
		return now.Add(time.Duration(s) * time.Second)
	}
	var leases, waning []Lease
	for _, p := range a.pd.prefixes {
		switch l := (Lease{p.prefix, end(p.preferred), end(p.valid)}); {
		case p.valid == 0: // withdrawn
		case p.preferred == 0:
			waning = append(waning, l)
		default:
			leases = append(leases, l)
		}
	}
	leases = append(leases, waning...)
	for _, l := range before {
		if !all && len(leases) < maxPrefixes && !overlaps(a.pd.prefixes, l.Prefix) {
			leases = append(leases, l)
		}
	}
	m.leases, m.server, m.offers = leases, a.server, nil
	m.changed, m.dirty = true, true
	if have, had := prefixes(leases), prefixes(before); !slices.Equal(have, had) {
		m.note("the server %x delegates %s%s", a.server, m.list(), instead(had))
	}
	m.keepKey(a)
	if len(leases) == 0 {
		m.wanted, m.t1, m.t2 = nil, time.Time{}, time.Time{}
		m.refusals++
		m.solicit(now)
		return
	}
	m.refusals, m.wanted = 0, prefixes(leases)
	m.t1, m.t2 = times(a.pd, leases, now)
	if !m.t2.IsZero() && m.t2.Before(m.t1) {
		m.t2 = m.t1
	}
	m.phase, m.exchange = bound, exchange{}
}

// expire drops what is not valid any more, and looks for something new when
// nothing is left.
func (m *machine) expire(now time.Time) {
	var left []Lease
	for _, l := range m.leases {
		if l.Valid.IsZero() || now.Before(l.Valid) {
			left = append(left, l)
		}
	}
	if len(left) == len(m.leases) {
		return
	}
	m.note("%s: expired", strings.Join(names(slices.DeleteFunc(prefixes(m.leases), func(p netip.Prefix) bool {
		return slices.Contains(prefixes(left), p)
	})), ", "))
	m.leases, m.changed, m.dirty = left, true, true
	if len(left) > 0 {
		return
	}
	switch m.phase {
	case bound, renewing, rebinding, verifying:
		m.solicit(now)
	}
}

// note is a line for the log.
func (m *machine) note(format string, args ...any) {
	m.notes = append(m.notes, fmt.Sprintf(format, args...))
}
