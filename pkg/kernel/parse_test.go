package kernel

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/firewall"
	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/state"
)

func TestResolvers(t *testing.T) {
	for _, tt := range []struct {
		name  string
		texts []string
		want  []string
	}{
		{name: "none"},
		{name: "plain", texts: []string{"# c\nsearch example.org\nnameserver 192.0.2.53\nnameserver\t2001:db8::53 \noptions edns0\n"}, want: []string{"192.0.2.53", "2001:db8::53"}},
		{name: "stub", texts: []string{"nameserver 127.0.0.53\n", "nameserver 9.9.9.9\n"}, want: []string{"9.9.9.9"}},
		{name: "stub and a real one", texts: []string{"nameserver ::1\nnameserver 9.9.9.9", "nameserver 8.8.8.8"}, want: []string{"9.9.9.9"}},
		{name: "useless", texts: []string{"nameserver fe80::1%eth0\nnameserver 0.0.0.0\nnameserver x\nnameserver\n#nameserver 1.1.1.1\n"}},
		{name: "twice", texts: []string{"nameserver 9.9.9.9\nnameserver ::ffff:9.9.9.9\n"}, want: []string{"9.9.9.9"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, a := range resolvers(tt.texts...) {
				got = append(got, a.String())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestElemKey: what is written is what is read.
func TestElemKey(t *testing.T) {
	for _, e := range []state.Elem{
		{Set: state.SetGuard4, Link: "s32-web1", Addr: netip.MustParsePrefix("192.0.2.1/32")},
		{Set: state.SetMasq6, Link: "fifteen-chars-x", Addr: netip.MustParsePrefix("fd00::1/128")},
		{Set: state.SetGuard6, Link: "b", Addr: netip.MustParsePrefix("2001:db8:1:10::/60")},
		{Set: state.SetMasq6, Link: "eth0", Addr: netip.MustParsePrefix("fd00:1:2::/48")},
		{Set: state.SetGuardMAC, Link: "b", MAC: [6]byte{2, 3, 4, 5, 6, 7}},
		{Set: state.SetSpoof4, Link: "b"},
		{Set: state.SetMark, Link: "b", Mark: 1 << 21},
		{Set: state.SetForward4, Addr: netip.MustParsePrefix("0.0.0.0/32"), Proto: 6, Port: 8022, To: netip.MustParseAddrPort("10.0.0.1:22")},
		{Set: state.SetForward6, Addr: netip.MustParsePrefix("2001:db8::1/128"), Proto: 17, Port: 53, To: netip.MustParseAddrPort("[fd00::1]:5353")},
		{Set: state.SetPublic4, Addr: netip.MustParsePrefix("203.0.113.50/32"), To: netip.MustParseAddrPort("10.0.0.1:0")},
		{Set: state.SetPublic6, Addr: netip.MustParsePrefix("2001:db8::50/128"), To: netip.MustParseAddrPort("[fd00::1]:0")},
		{Set: state.SetSNAT4, Link: "eth0", Addr: netip.MustParsePrefix("10.0.0.1/32"), To: netip.MustParseAddrPort("203.0.113.9:0")},
		{Set: state.SetSNAT6, Link: "eth0", Addr: netip.MustParsePrefix("fd00:1:2::/48"), To: netip.MustParseAddrPort("[2001:db8::9]:0")},
	} {
		i := slices.IndexFunc(sets(), func(s set) bool { return s.name == setOf(e) })
		if i < 0 {
			t.Errorf("%v is in no set", e)
			continue
		}
		key, got := e, state.Elem{Set: e.Set}
		key.Mark, key.To = 0, netip.AddrPort{}
		if !parseKey(&got, sets()[i], elemKey(e)) || got != key {
			t.Errorf("%v is read as %v", e, got)
		}
		if v := valueBytes(e); v != nil {
			if parseValue(&got, v); got != e {
				t.Errorf("the value of %v is read as %v", e, got)
			}
		}
	}
}

// FuzzParse: whatever a netlink message holds, reading it does not panic.
func FuzzParse(f *testing.F) {
	l := state.Link{Name: "s32-web1", UUID: "u", MTU: 1500, Up: true}
	for _, m := range createLink(l) {
		m.seal(1)
		f.Add([]byte(m))
	}
	a := applier{k: &Kernel{ioctl: -1}}
	a.index = map[string]int{"b": 3}
	r, err := a.route(state.Add, state.Route{Dst: netip.MustParsePrefix("192.0.2.1/32"), Table: 254, Link: "b"})
	if err != nil {
		f.Fatal(err)
	}
	n, err := a.neigh(state.Add, state.Neigh{NeighKey: state.NeighKey{Link: "b", IP: netip.MustParseAddr("fd00::1")}})
	if err != nil {
		f.Fatal(err)
	}
	d, err := a.addr(state.Add, state.Addr{Link: "b", Prefix: netip.MustParsePrefix("fe80::1/64")})
	if err != nil {
		f.Fatal(err)
	}
	rule := ruleRequest(state.Add, state.Rule{Family: unix.AF_INET, Priority: marks.RulePriorityMarked, Mark: 1 << marks.FwmarkShift, Table: 100})
	elems := elemsMessage(unix.NFT_MSG_NEWSETELEM, []state.Elem{{Set: state.SetMark, Link: "b", Mark: 5}})
	prefixes := elemsMessage(unix.NFT_MSG_NEWSETELEM, []state.Elem{{Set: state.SetGuard6, Link: "b", Addr: netip.MustParsePrefix("fd00::/60")}})
	proxied := proxyMessage(unix.RTM_NEWNEIGH, 0, unix.AF_INET6, 3).attr(unix.NDA_DST, netip.MustParseAddr("fd00::1").AsSlice()).u8(ndaProtocol, marks.RouteProtocol)
	opening, err := openingRule(openingMessage(unix.NFT_MSG_NEWRULE, 0, unix.NFPROTO_IPV4, Opening{Table: "filter", Chain: "DOCKER-USER"}), Opening{}, firewall.OIFGroup)
	if err != nil {
		f.Fatal(err)
	}
	for _, m := range []message{r, n, d, rule, elems, prefixes, proxied, opening} {
		m.seal(1)
		f.Add([]byte(m))
	}
	rd := reader{links: map[int]link{3: {name: "b"}}}
	w := watcher{ours: func(int) bool { return true }, foreign: func() {}, writers: &writers{}}
	f.Fuzz(func(t *testing.T, b []byte) {
		messages(b, func(typ, flags uint16, _ uint32, data []byte) {
			_ = answerError(typ, flags, data)
			_ = w.routeReason(typ, data)
			_ = w.nftReason(typ, data)
			l := parseLink(data)
			l.settings(func(string, string) {})
			_ = l.state(nil)
			_, _ = rd.addr(data)
			_, _ = parseNeigh(data)
			_, _ = parseProxy(data)
			if x, ok := parseRoute(data); ok {
				_ = firstHop(data)
				_ = x.state(func(int) string { return "b" }).String()
			}
			_, _ = parseRule(data)
			_, _ = names(data)
			_, _ = parseChain(data)
			_, _ = parseCase(data)
			_, _ = parseForeignRule(data, func(string) []firewall.Case { return nil })
			w.writers.note(data)
			_ = hashed(data, unix.NFTA_RULE_EXPRESSIONS)
			for _, s := range sets() {
				_, _, _ = parseElem(s, data)
			}
		})
	})
}

// TestModuleLater: br_netfilter may be loaded after the Kernel was opened, so nothing
// of it is kept from then.
func TestModuleLater(t *testing.T) {
	k, err := New(logrus.New())
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if _, kept := k.sysctls[dirBridge]; kept {
		t.Errorf("%s is kept open", dirBridge)
	}
	for _, path := range append(bridgeNFPaths[:], "net/bridge/no-such-setting") {
		want, wantErr := os.ReadFile("/proc/sys/" + path)
		got, err := k.readSysctl(path)
		if got != strings.TrimSpace(string(want)) || (err == nil) != (wantErr == nil) || err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %q, %v; want %q, %v", path, got, err, want, wantErr)
		}
	}
	if _, err := k.readSysctl("net/bridge/../ipv4/ip_forward"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a path that leads elsewhere: %v", err)
	}
}
