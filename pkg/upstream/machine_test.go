package upstream

import (
	"bytes"
	"crypto/hmac"
	"crypto/md5"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

var (
	t0      = time.Unix(1_800_000_000, 0)
	byValue = cmp.Options{
		cmp.Comparer(func(x, y netip.Prefix) bool { return x == y }),
		cmp.Comparer(func(x, y time.Time) bool { return x.Equal(y) }),
	}
	ourDUID   = []byte{0, 3, 0, 1, 2, 0, 0, 0, 0, 1}
	ourIAID   = [4]byte{0, 0, 0, 7}
	firstDUID = []byte{0, 3, 0, 1, 2, 0, 0, 0, 1, 1}
	otherDUID = []byte{0, 3, 0, 1, 2, 0, 0, 0, 2, 2}
)

// middle is in the middle of every range, so that times come out round.
type middle struct{ n uint64 }

func (m *middle) Uint64() uint64 { m.n++; return 1<<52 | m.n<<32 }

// given is a prefix and its lifetimes as a server gives it.
type given struct {
	prefix           string
	preferred, valid time.Duration
}

// reply is what a server says.
type reply struct {
	kind   dhcpv6.MessageType
	server []byte
	t1, t2 time.Duration
	give   []given
	status iana.StatusCode // of the IA_PD
	top    iana.StatusCode // of the message
	noPD   bool
	extra  []dhcpv6.Option
}

func (r reply) to(q *dhcpv6.Message) []byte {
	m := dhcpv6.Message{MessageType: r.kind, TransactionID: q.TransactionID}
	if r.server == nil {
		r.server = firstDUID
	}
	m.Options.Add(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionServerID, OptionData: r.server})
	m.Options.Add(q.GetOneOption(dhcpv6.OptionClientID))
	if r.top != 0 {
		m.Options.Add(&dhcpv6.OptStatusCode{StatusCode: r.top})
	}
	for _, o := range r.extra {
		m.Options.Add(o)
	}
	if !r.noPD {
		pd := &dhcpv6.OptIAPD{IaId: ourIAID, T1: r.t1, T2: r.t2}
		if r.status != 0 {
			pd.Options.Add(&dhcpv6.OptStatusCode{StatusCode: r.status})
		}
		for _, g := range r.give {
			p := netip.MustParsePrefix(g.prefix)
			pd.Options.Add(&dhcpv6.OptIAPrefix{PreferredLifetime: g.preferred, ValidLifetime: g.valid,
				Prefix: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 128)}})
		}
		m.Options.Add(pd)
	}
	return m.ToBytes()
}

// bed is a machine with a clock and a server.
type bed struct {
	t      *testing.T
	m      *machine
	now    time.Time
	server func(q *dhcpv6.Message) [][]byte // nil: nobody answers
	log    []string
}

func newBed(t *testing.T) *bed {
	return &bed{t: t, now: t0, m: &machine{kept: kept{duid: ourDUID, iaid: ourIAID}, random: rand.New(&middle{}), hint: 56}}
}

// serve makes the server answer with those, in turn, the last one for ever.
func (b *bed) serve(replies ...reply) {
	b.server = func(q *dhcpv6.Message) [][]byte {
		r := replies[0]
		if len(replies) > 1 {
			replies = replies[1:]
		}
		return [][]byte{r.to(q)}
	}
}

// run lets time go on to that long after the start.
func (b *bed) run(until time.Duration) {
	b.t.Helper()
	for range 10000 {
		next := b.m.next()
		if next.IsZero() || next.After(t0.Add(until)) {
			b.now = t0.Add(until)
			return
		}
		b.now = next
		b.sent(b.m.wake(b.now))
	}
	b.t.Fatal("it never rests")
}

func (b *bed) sent(message []byte) {
	b.t.Helper()
	if message == nil {
		return
	}
	q := read(b.t, message)
	b.log = append(b.log, fmt.Sprintf("%v %s", b.now.Sub(t0).Round(time.Second), text(q)))
	if b.server != nil {
		for _, r := range b.server(q) {
			b.m.receive(r, b.now)
		}
	}
}

// read takes a message of ours apart. DUIDs are opaque (RFC 8415 §11).
func read(t *testing.T, message []byte) *dhcpv6.Message {
	t.Helper()
	q := &dhcpv6.Message{MessageType: dhcpv6.MessageType(message[0]), TransactionID: dhcpv6.TransactionID(message[1:4])}
	if err := q.Options.FromBytesWithParser(message[4:], parseOption); err != nil {
		t.Fatalf("%x: %v", message, err)
	}
	return q
}

// text is a message of ours: its type, its prefixes, and which server it is to.
func text(q *dhcpv6.Message) string {
	s := q.MessageType.String()
	for _, p := range q.Options.OneIAPD().Options.Prefixes() {
		s += " " + p.Prefix.String()
	}
	if o := q.GetOneOption(dhcpv6.OptionServerID); o != nil {
		s += map[string]string{string(firstDUID): " to first", string(otherDUID): " to other"}[string(o.ToBytes())]
	}
	return s
}

// has compares the messages since the last time, and then phase and prefixes.
func (b *bed) has(what, messages, phase, leases string) {
	b.t.Helper()
	var l []string
	for _, x := range b.m.leases {
		s := x.Prefix.String()
		if !x.Preferred.IsZero() && !x.Preferred.After(b.now) {
			s += " waning"
		}
		l = append(l, s)
	}
	if d := cmp.Diff(messages, strings.Join(b.log, "; ")); d != "" {
		b.t.Errorf("%s: messages (-want +got):\n%s", what, d)
	}
	if got := strings.Join(l, ", "); string(b.m.phase) != phase || got != leases {
		b.t.Errorf("%s: %s with %q, want %s with %q", what, b.m.phase, got, phase, leases)
	}
	b.log = nil
}

const (
	advertise = dhcpv6.MessageTypeAdvertise
	replied   = dhcpv6.MessageTypeReply
	hour      = time.Hour
	forever   = infinity * time.Second
)

var (
	one       = given{"2001:db8:1::/56", 2 * hour, 4 * hour}
	two       = given{"2001:db8:2::/56", 2 * hour, 4 * hour}
	noneOf1   = given{"2001:db8:1::/56", 0, 0}
	ulaPrefix = netip.MustParsePrefix("fd00:1::/48")
	pref255   = dhcpv6.OptPreference(255)
	rapid     = &dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit}
)

// begun is a bed that is bound to 2001:db8:1::/56 since it is 2 s (rounded) old.
func begun(t *testing.T) *bed {
	t.Helper()
	b := newBed(t)
	b.serve(reply{kind: advertise, give: []given{one}}, reply{kind: replied, give: []given{one}, t1: hour, t2: 90 * time.Minute})
	b.m.begin(b.now)
	b.run(10 * time.Second)
	b.has("begun", "1s SOLICIT ::/56; 2s REQUEST 2001:db8:1::/56 to first", "bound", "2001:db8:1::/56")
	return b
}

func TestObtain(t *testing.T) {
	for _, c := range []struct {
		name            string
		replies         []reply
		messages, state string
	}{
		{"after its preference, at once", []reply{{kind: advertise, give: []given{one}, extra: []dhcpv6.Option{pref255}}, {kind: replied, give: []given{one}}},
			"1s SOLICIT ::/56; 1s REQUEST 2001:db8:1::/56 to first", "bound 2001:db8:1::/56"},
		{"rapid commit", []reply{{kind: replied, give: []given{one}, extra: []dhcpv6.Option{rapid}}}, "1s SOLICIT ::/56", "bound 2001:db8:1::/56"},
		{"a REPLY without it is nothing", []reply{{kind: replied, give: []given{one}}}, "1s SOLICIT ::/56; 2s SOLICIT ::/56; 4s SOLICIT ::/56; 8s SOLICIT ::/56", "soliciting "},
		{"nothing to be had", []reply{{kind: advertise, status: iana.StatusNoPrefixAvail}}, "1s SOLICIT ::/56; 2s SOLICIT ::/56; 4s SOLICIT ::/56; 8s SOLICIT ::/56", "soliciting "},
		{"refused after all: the next time later", []reply{{kind: advertise, give: []given{one}}, {kind: replied, status: iana.StatusNoPrefixAvail}},
			"1s SOLICIT ::/56; 2s REQUEST 2001:db8:1::/56 to first; 4s SOLICIT ::/56; 5s SOLICIT ::/56; 7s SOLICIT ::/56; 11s SOLICIT ::/56", "soliciting "},
		{"for the moment it cannot", []reply{{kind: advertise, give: []given{one}}, {kind: replied, top: iana.StatusUnspecFail}, {kind: replied, give: []given{one}}},
			"1s SOLICIT ::/56; 2s REQUEST 2001:db8:1::/56 to first; 3s REQUEST 2001:db8:1::/56 to first", "bound 2001:db8:1::/56"},
		{"what cannot be used", []reply{{kind: advertise, give: []given{one}}, {kind: replied, give: []given{{"fe80::/56", hour, hour}, {"2001:db8::/65", hour, hour},
			{"2001:db8:3::/56", hour, hour - 1*time.Second}, {"2001:db8::/32", hour, hour}, one, {"::/56", hour, hour}, {"2001:db8:9::/48", 0, hour}, {"ff00::/8", hour, hour}}}},
			"1s SOLICIT ::/56; 2s REQUEST 2001:db8:1::/56 to first", "bound 2001:db8::/32"},
		{"four at most, those to number from first", []reply{{kind: replied, extra: []dhcpv6.Option{rapid}, give: []given{{"2001:db8:a::/48", 0, hour}, {"2001:db8:b::/48", hour, hour},
			{"2001:db8:c::/48", hour, hour}, {"fd00:d::/48", forever, forever}, {"2001:db8:e::/48", hour, hour}}}},
			"1s SOLICIT ::/56", "bound 2001:db8:b::/48, 2001:db8:c::/48, fd00:d::/48, 2001:db8:a::/48 waning"},
		{"T1 is later than T2", []reply{{kind: replied, extra: []dhcpv6.Option{rapid}, give: []given{one}, t1: 2 * hour, t2: hour}},
			"1s SOLICIT ::/56; 2s SOLICIT ::/56; 4s SOLICIT ::/56; 8s SOLICIT ::/56", "soliciting "},
		{"of another IAID", []reply{{kind: replied, noPD: true, extra: []dhcpv6.Option{rapid, &dhcpv6.OptIAPD{IaId: [4]byte{9}}}}},
			"1s SOLICIT ::/56; 2s SOLICIT ::/56; 4s SOLICIT ::/56; 8s SOLICIT ::/56", "soliciting "},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBed(t)
			b.serve(c.replies...)
			b.m.begin(b.now)
			b.run(12 * time.Second)
			phase, leases, _ := strings.Cut(c.state, " ")
			b.has("then", c.messages, phase, leases)
		})
	}
}

func TestTheBestServer(t *testing.T) {
	for _, c := range []struct {
		name   string
		offers []reply
		wanted string
		want   string
	}{
		{"the first", []reply{{give: []given{one}}, {server: otherDUID, give: []given{two}}}, "", "first"},
		{"by preference", []reply{{give: []given{one}}, {server: otherDUID, give: []given{two}, extra: []dhcpv6.Option{dhcpv6.OptPreference(1)}}}, "", "other"},
		{"by length", []reply{{give: []given{{"2001:db8:1::/60", hour, hour}}}, {server: otherDUID, give: []given{two}}}, "", "other"},
		{"with what we had", []reply{{give: []given{one}}, {server: otherDUID, give: []given{two}}}, two.prefix, "other"},
		{"its last word", []reply{{server: otherDUID, give: []given{one}, extra: []dhcpv6.Option{dhcpv6.OptPreference(1)}}, {give: []given{one}}, {server: otherDUID, give: []given{one}}}, "", "first"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBed(t)
			if c.wanted != "" {
				b.m.wanted = []netip.Prefix{netip.MustParsePrefix(c.wanted)}
			}
			b.server = func(q *dhcpv6.Message) [][]byte {
				var all [][]byte
				for _, o := range c.offers {
					o.kind = advertise
					all = append(all, o.to(q))
				}
				return all
			}
			b.m.begin(b.now)
			b.run(3 * time.Second)
			if len(b.log) < 2 || !strings.HasSuffix(b.log[1], " to "+c.want) {
				t.Errorf("want %s: %v", c.want, b.log)
			}
		})
	}
}

func TestNobodyAnswers(t *testing.T) {
	b := newBed(t)
	b.m.begin(b.now)
	b.run(4 * hour)
	if n := len(b.log); n != 15 || b.log[13] != "2h11m42s SOLICIT ::/56" || b.log[14] != "3h11m42s SOLICIT ::/56" {
		t.Errorf("%d messages: %v", n, b.log)
	}
	b.log = nil
	b.server = func(q *dhcpv6.Message) [][]byte { // has nothing, and wants to be asked once a minute
		return [][]byte{reply{kind: advertise, status: iana.StatusNoPrefixAvail,
			extra: []dhcpv6.Option{&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionSolMaxRT, OptionData: []byte{0, 0, 0, 60}}}}.to(q)}
	}
	b.run(5*hour + 15*time.Minute)
	b.has("asked", "4h11m42s SOLICIT ::/56; 5h11m42s SOLICIT ::/56; 5h12m42s SOLICIT ::/56; 5h13m42s SOLICIT ::/56; 5h14m42s SOLICIT ::/56", "soliciting", "")
	for _, v := range []uint32{0, 59, 86401} {
		b.server = nil
		b.m.receive(reply{kind: advertise, status: iana.StatusNoPrefixAvail, extra: []dhcpv6.Option{&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionSolMaxRT,
			OptionData: binary.BigEndian.AppendUint32(nil, v)}}}.to(lastQuestion(b)), b.now)
		if b.m.maxRT != time.Minute {
			t.Errorf("SOL_MAX_RT %d: %v", v, b.m.maxRT)
		}
	}
}

// lastQuestion is the message that waits for its answer.
func lastQuestion(b *bed) *dhcpv6.Message {
	return read(b.t, b.m.question(b.now).bytes())
}

func TestRenew(t *testing.T) {
	b := begun(t)
	b.run(hour + 5*time.Second)
	b.has("renewed", "1h0m2s RENEW 2001:db8:1::/56 to first", "bound", "2001:db8:1::/56")
	if l := b.m.leases[0]; l.Valid.Sub(t0).Round(time.Minute) != 5*hour || l.Preferred.Sub(t0).Round(time.Minute) != 3*hour {
		t.Errorf("valid until %v", l.Valid.Sub(t0))
	}
	b.server = nil
	b.run(2*hour + 31*time.Minute)
	b.has("the server is gone", "2h0m2s RENEW 2001:db8:1::/56 to first; 2h0m12s RENEW 2001:db8:1::/56 to first; 2h0m32s RENEW 2001:db8:1::/56 to first; 2h1m12s RENEW 2001:db8:1::/56 to first; "+
		"2h2m32s RENEW 2001:db8:1::/56 to first; 2h5m12s RENEW 2001:db8:1::/56 to first; 2h10m32s RENEW 2001:db8:1::/56 to first; 2h20m32s RENEW 2001:db8:1::/56 to first; "+
		"2h30m2s REBIND 2001:db8:1::/56; 2h30m12s REBIND 2001:db8:1::/56; 2h30m32s REBIND 2001:db8:1::/56", "rebinding", "2001:db8:1::/56")
	b.serve(reply{kind: replied, server: otherDUID, give: []given{one}})
	b.run(2*hour + 32*time.Minute)
	b.has("another one knows it", "2h31m12s REBIND 2001:db8:1::/56", "bound", "2001:db8:1::/56")
	b.server = nil
	b.run(3*hour + 32*time.Minute)
	b.has("and is asked now, at T1 of its own", "3h31m12s RENEW 2001:db8:1::/56 to other; 3h31m22s RENEW 2001:db8:1::/56 to other; 3h31m42s RENEW 2001:db8:1::/56 to other", "renewing", "2001:db8:1::/56")
	b.run(6*hour + 31*time.Minute)
	b.log = nil
	b.m.changed = false
	b.run(6*hour + 31*time.Minute + 14*time.Second)
	b.has("expired: it asks for the same", "6h31m12s SOLICIT 2001:db8:1::/56; 6h31m13s SOLICIT 2001:db8:1::/56", "soliciting", "")
	if !b.m.changed {
		t.Error("nobody is told")
	}
}

func TestRenumbered(t *testing.T) {
	for _, c := range []struct {
		name    string
		replies []reply
		leases  string
		then    string
	}{
		{"the old one is withdrawn", []reply{{kind: replied, give: []given{noneOf1, two}}}, "2001:db8:2::/56", "1h0m2s RENEW 2001:db8:1::/56 to first"},
		{"the old one is on its way out", []reply{{kind: replied, give: []given{{one.prefix, 0, hour}, two}}}, "2001:db8:2::/56, 2001:db8:1::/56 waning", "1h0m2s RENEW 2001:db8:1::/56 to first"},
		{"the old one is not mentioned", []reply{{kind: replied, give: []given{two}}}, "2001:db8:2::/56, 2001:db8:1::/56", "1h0m2s RENEW 2001:db8:1::/56 to first"},
		{"it forgot us", []reply{{kind: replied, status: iana.StatusNoBinding}, {kind: replied, give: []given{two}}}, "2001:db8:2::/56",
			"1h0m2s RENEW 2001:db8:1::/56 to first; 1h0m2s REQUEST 2001:db8:1::/56 to first"},
		{"it forgot us and has nothing", []reply{{kind: replied, status: iana.StatusNoBinding}, {kind: replied, status: iana.StatusNoPrefixAvail}, {kind: advertise, give: []given{two}}, {kind: replied, give: []given{two}}},
			"2001:db8:2::/56", "1h0m2s RENEW 2001:db8:1::/56 to first; 1h0m2s REQUEST 2001:db8:1::/56 to first; 1h0m4s SOLICIT 2001:db8:1::/56; 1h0m5s REQUEST 2001:db8:2::/56 to first"},
		{"withdrawn, and nothing instead", []reply{{kind: replied, give: []given{noneOf1}}, {kind: advertise, give: []given{two}}, {kind: replied, give: []given{two}}}, "2001:db8:2::/56",
			"1h0m2s RENEW 2001:db8:1::/56 to first; 1h0m4s SOLICIT ::/56; 1h0m5s REQUEST 2001:db8:2::/56 to first"},
		{"no IA_PD: asked again", []reply{{kind: replied, noPD: true}, {kind: replied, give: []given{two}}}, "2001:db8:2::/56, 2001:db8:1::/56",
			"1h0m2s RENEW 2001:db8:1::/56 to first; 1h0m12s RENEW 2001:db8:1::/56 to first"},
		{"another server's answer", []reply{{kind: replied, server: otherDUID, give: []given{noneOf1}}, {kind: replied, give: []given{one}}}, "2001:db8:1::/56",
			"1h0m2s RENEW 2001:db8:1::/56 to first; 1h0m12s RENEW 2001:db8:1::/56 to first"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := begun(t)
			b.m.changed = false
			b.serve(c.replies...)
			b.run(hour + 30*time.Second)
			b.has("then", c.then, "bound", c.leases)
			if !b.m.changed {
				t.Error("nobody is told")
			}
		})
	}
}

func TestRestart(t *testing.T) {
	saved := begun(t).m.kept
	file, err := encode(saved)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name     string
		after    time.Duration // of the start of the first
		replies  []reply
		messages string
		phase    phase
		leases   string
	}{
		{"verified", hour / 2, []reply{{kind: replied, give: []given{one}}}, "1s REBIND 2001:db8:1::/56", bound, "2001:db8:1::/56"},
		{"nobody answers: it goes on", hour / 2, nil, "1s REBIND 2001:db8:1::/56; 2s REBIND 2001:db8:1::/56; 4s REBIND 2001:db8:1::/56; 8s REBIND 2001:db8:1::/56", bound, "2001:db8:1::/56"},
		{"nobody answers, after T1", hour + time.Minute, nil, "1s REBIND 2001:db8:1::/56; 2s REBIND 2001:db8:1::/56; 4s REBIND 2001:db8:1::/56; 8s REBIND 2001:db8:1::/56; 11s RENEW 2001:db8:1::/56 to first; 21s RENEW 2001:db8:1::/56 to first", renewing, "2001:db8:1::/56"},
		{"nobody answers, after T2", 2 * hour, nil, "1s REBIND 2001:db8:1::/56; 2s REBIND 2001:db8:1::/56; 4s REBIND 2001:db8:1::/56; 8s REBIND 2001:db8:1::/56; 11s REBIND 2001:db8:1::/56; 21s REBIND 2001:db8:1::/56", rebinding, "2001:db8:1::/56 waning"},
		{"another network", hour / 2, []reply{{kind: replied, give: []given{noneOf1, two}}}, "1s REBIND 2001:db8:1::/56", bound, "2001:db8:2::/56"},
		{"expired meanwhile: it asks for the same", 5 * hour, []reply{{kind: advertise, give: []given{one}}, {kind: replied, give: []given{one}}},
			"1s SOLICIT 2001:db8:1::/56; 2s REQUEST 2001:db8:1::/56 to first", bound, "2001:db8:1::/56"},
	} {
		t.Run(c.name, func(t *testing.T) {
			k, err := decode(file)
			if err != nil {
				t.Fatal(err)
			}
			b := newBed(t)
			b.m.kept = k
			if len(c.replies) > 0 {
				b.serve(c.replies...)
			}
			b.now = t0.Add(c.after)
			b.m.begin(b.now)
			b.run(c.after + 30*time.Second)
			for i, l := range b.log { // relative to the restart
				at, rest, _ := strings.Cut(l, " ")
				d, err := time.ParseDuration(at)
				if err != nil {
					t.Fatal(err)
				}
				b.log[i] = (d - c.after).String() + " " + rest
			}
			b.has("then", c.messages, string(c.phase), c.leases)
		})
	}
}

func TestLinkUp(t *testing.T) {
	b := begun(t)
	b.m.begin(b.now)
	b.m.begin(b.now) // what is about to be verified is not verified anew
	b.run(30 * time.Second)
	b.has("verified", "11s REBIND 2001:db8:1::/56", "bound", "2001:db8:1::/56")
	b = newBed(t)
	b.m.begin(b.now)
	b.run(hour)
	b.log = nil
	b.m.begin(b.now)
	b.run(hour + 2*time.Second)
	b.has("it looks for servers at once", "1h0m1s SOLICIT ::/56; 1h0m2s SOLICIT ::/56", "soliciting", "")
}

func TestRelease(t *testing.T) {
	for _, answered := range []bool{true, false} {
		b := begun(t)
		b.server = nil
		want := "10s RELEASE 2001:db8:1::/56 to first; 11s RELEASE 2001:db8:1::/56 to first; 13s RELEASE 2001:db8:1::/56 to first; 17s RELEASE 2001:db8:1::/56 to first"
		if answered {
			b.serve(reply{kind: replied, status: iana.StatusNoBinding})
			want = "10s RELEASE 2001:db8:1::/56 to first"
		}
		b.m.release(b.now)
		b.run(hour)
		b.has("released", want, "released", "")
		if k := b.m.kept; k.server != nil || k.wanted != nil || !bytes.Equal(k.duid, ourDUID) || k.iaid != ourIAID || !b.m.dirty {
			t.Errorf("kept: %+v", k)
		}
	}
	b := newBed(t)
	b.m.release(b.now)
	b.run(hour)
	b.has("nothing to give back", "", "released", "")
}

func TestTimes(t *testing.T) {
	const s = time.Second
	for _, c := range []struct {
		name   string
		t1, t2 time.Duration
		give   []given
		r1, r2 time.Duration // 0: never
	}{
		{"the server's", 100 * s, 160 * s, []given{one}, 100 * s, 160 * s},
		{"left to us", 0, 0, []given{one, {"2001:db8:2::/56", 1000 * s, 2000 * s}}, 500 * s, 800 * s},
		{"only T2", 100 * s, 0, []given{{one.prefix, 100 * s, 200 * s}}, 100 * s, 100 * s},
		{"for ever", 0, 0, []given{{one.prefix, forever, forever}}, 0, 0},
		{"never, but it ends", forever, forever, []given{{one.prefix, 1000 * s, 2000 * s}}, 500 * s, 800 * s},
		{"never", forever, forever, []given{{one.prefix, forever, forever}}, 0, 0},
		{"later than it ends", hour, 2 * hour, []given{{one.prefix, 1000 * s, 2000 * s}}, 500 * s, 800 * s},
		{"too soon", 1 * s, 1 * s, []given{one}, 5 * s, 5 * s},
		{"only one on its way out", 0, 0, []given{{one.prefix, 0, 1000 * s}}, 500 * s, 800 * s},
	} {
		b := newBed(t)
		b.serve(reply{kind: replied, extra: []dhcpv6.Option{rapid}, t1: c.t1, t2: c.t2, give: c.give})
		b.m.begin(b.now)
		b.run(time.Second)
		after := func(x time.Time) time.Duration {
			if x.IsZero() {
				return 0
			}
			return x.Sub(t0).Truncate(s)
		}
		if g1, g2 := after(b.m.t1), after(b.m.t2); g1 != c.r1 || g2 != c.r2 {
			t.Errorf("%s: T1 %v, T2 %v; want %v, %v", c.name, g1, g2, c.r1, c.r2)
		}
	}
}

func TestHostile(t *testing.T) {
	b := begun(t)
	before := b.m.counts
	q := lastQuestion(b)
	good := reply{kind: replied, give: []given{noneOf1}}.to(q)
	cut := good[:len(good)-3]
	foreign := bytes.Replace(good, ourDUID, otherDUID, 1)
	for _, m := range [][]byte{nil, {7}, cut, make([]byte, maxMessage+1), good, foreign, {2, 1, 2, 3}, {12, 0, 0, 0}, {10, 0, 0, 0}} {
		b.m.receive(m, b.now)
	}
	b.has("nothing of it counts", "", "bound", "2001:db8:1::/56")
	if c := b.m.counts; c.Received-before.Received != 9 || c.Malformed-before.Malformed != 4 || c.Stray-before.Stray != 5 {
		t.Errorf("counts: %+v", c)
	}
	// A flood of advertisements is remembered up to a bound.
	b = newBed(t)
	b.m.begin(b.now)
	b.run(time.Second)
	for i := range 100 {
		b.m.receive(reply{kind: advertise, server: append(slices.Clone(otherDUID), byte(i)), give: []given{one}}.to(lastQuestion(b)), b.now)
	}
	if n := len(b.m.offers); n != maxOffers {
		t.Errorf("%d offers", n)
	}
	// A server that grants and takes back cannot make it busy.
	b = newBed(t)
	b.server = func(q *dhcpv6.Message) [][]byte {
		return [][]byte{reply{kind: advertise, give: []given{one}, extra: []dhcpv6.Option{pref255}}.to(q), reply{kind: replied, status: iana.StatusNoPrefixAvail}.to(q)}
	}
	b.m.begin(b.now)
	b.run(hour)
	if n := len(b.log); n > 60 {
		t.Errorf("%d messages in an hour", n)
	}
}

// TestReconfigure is the RECONFIGURE of a server that has handed out a key.
func TestReconfigure(t *testing.T) {
	key := bytes.Repeat([]byte{7}, keySize)
	auth := func(kind byte, replay uint64, value []byte) *dhcpv6.OptionGeneric {
		data := append(binary.BigEndian.AppendUint64([]byte{protocolRKAP, algorithmMD5, methodCounter}, replay), kind)
		return &dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionAuth, OptionData: append(data, value...)}
	}
	reconfigure := func(server []byte, kind byte, replay uint64, key []byte) []byte {
		m := func(sum []byte) []byte {
			m := dhcpv6.Message{MessageType: dhcpv6.MessageTypeReconfigure}
			m.Options.Add(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionServerID, OptionData: server})
			m.Options.Add(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionClientID, OptionData: ourDUID})
			m.Options.Add(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionReconfMessage, OptionData: []byte{kind}})
			m.Options.Add(auth(typeHMAC, replay, sum))
			return m.ToBytes()
		}
		h := hmac.New(md5.New, key)
		h.Write(m(make([]byte, keySize)))
		return m(h.Sum(nil))
	}
	bind := func() *bed {
		b := newBed(t)
		b.serve(reply{kind: replied, extra: []dhcpv6.Option{rapid, auth(typeKey, 5, key)}, give: []given{one}})
		b.m.begin(b.now)
		b.run(2 * time.Second)
		b.log = nil
		return b
	}
	for _, c := range []struct {
		name    string
		message []byte
		want    string
	}{
		{"renew", reconfigure(firstDUID, 5, 6, key), "2s RENEW 2001:db8:1::/56 to first"},
		{"rebind", reconfigure(firstDUID, 6, 6, key), "2s REBIND 2001:db8:1::/56"},
		{"information", reconfigure(firstDUID, 11, 6, key), ""},
		{"an old one", reconfigure(firstDUID, 5, 5, key), ""},
		{"another key", reconfigure(firstDUID, 5, 6, key[1:]), ""},
		{"another server", reconfigure(otherDUID, 5, 6, key), ""},
	} {
		b := bind()
		b.m.receive(c.message, b.now)
		b.m.receive(c.message, b.now) // again: never twice
		b.run(3 * time.Second)
		b.has(c.name, c.want, "bound", "2001:db8:1::/56")
	}
	b := begun(t) // without a key
	b.m.receive(reconfigure(firstDUID, 5, 6, key), b.now)
	b.run(11 * time.Second)
	b.has("without a key", "", "bound", "2001:db8:1::/56")
}

// TestRetransmission holds RFC 8415 §15 for random draws.
func TestRetransmission(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		x := exchange{kind: dhcpv6.MessageTypeSolicit, timing: timing{initial: time.Second, longest: time.Minute}}
		var last time.Duration
		for now := t0; x.sent < 12; now = x.at {
			x.send(now, r.Float64())
			switch rt := x.at.Sub(now); {
			case x.sent == 1 && (rt <= time.Second || rt > 1100*time.Millisecond),
				x.sent > 1 && last < 20*time.Second && (rt < last*19/10 || rt > last*21/10),
				rt > 66*time.Second, x.sent > 8 && rt < 54*time.Second:
				t.Fatalf("the %d. time: %v after %v", x.sent, rt, last)
			default:
				last = rt
			}
		}
	}
}
