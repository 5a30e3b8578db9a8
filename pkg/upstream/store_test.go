package upstream

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
)

func TestStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "upstream", "eth0.json")
	if k, err := load(path); err != nil || k.duid != nil {
		t.Errorf("without a file: %+v, %v", k, err)
	}
	want := begun(t).m.kept
	want.key, want.replay = make([]byte, keySize), 9
	want.leases = append(want.leases, Lease{Prefix: want.leases[0].Prefix.Masked()})
	want.leases[1].Prefix = ulaPrefix
	if err := save(path, want); err != nil {
		t.Fatal(err)
	}
	got, err := load(path)
	if err != nil {
		t.Fatal(err)
	}
	// Times are kept to the second.
	for i, l := range want.leases {
		want.leases[i].Preferred, want.leases[i].Valid = fromUnix(toUnix(l.Preferred)), fromUnix(toUnix(l.Valid))
	}
	want.t1, want.t2, want.wanted = fromUnix(toUnix(want.t1)), fromUnix(toUnix(want.t2)), prefixes(want.leases)
	if d := cmp.Diff(want, got, byValue, cmp.AllowUnexported(kept{})); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if err := os.WriteFile(path, []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if k, err := load(path); err == nil || k.duid != nil || !strings.Contains(err.Error(), path+".bad") {
		t.Errorf("a broken file: %+v, %v", k, err)
	}
	if b, err := os.ReadFile(path + ".bad"); err != nil || string(b) != "torn" {
		t.Errorf("set aside: %q, %v", b, err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	const good = `{"version":1,"duid":"00030001020000000001","iaid":7,"server":"00030001","t1":1,"t2":2,"prefixes":[{"prefix":"2001:db8::/56","preferred":1,"valid":2}]}`
	if _, err := decode([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{
		"", "{}", "null", good + "x", strings.Replace(good, `:1,`, `:2,`, 1), strings.Replace(good, "00030001020000000001", "00", 1), strings.Replace(good, "0003", "xx", 1),
		strings.Replace(good, `"00030001"`, `"00"`, 1), strings.Replace(good, `"00030001"`, `""`, 1), strings.Replace(good, `"t1":1`, `"t1":-1`, 1),
		strings.Replace(good, `"valid":2`, `"valid":9223372036854775807`, 1), strings.Replace(good, "/56", "/65", 1), strings.Replace(good, "2001:db8::", "fe80::", 1),
		strings.Replace(good, `[{`, `[{"prefix":"2001:db8::/48"},{`, 1), strings.Replace(good, `"t1"`, `"key":"00","t1"`, 1), strings.Replace(good, `"t1"`, `"T0":1,"t1"`, 1),
		strings.Replace(good, `[{`, `[`+strings.Repeat(`{"prefix":"2001:db8::/56"},`, 4)+`{`, 1),
	} {
		if k, err := decode([]byte(s)); err == nil {
			t.Errorf("%s: %+v", s, k)
		}
	}
}

func TestIdentity(t *testing.T) {
	hw := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	duid, iaid, err := identity("eth0", hw)
	again, iaid2, _ := identity("eth0", hw)
	_, other, _ := identity("eth1", hw)
	if err != nil || cmp.Diff(ourDUID, duid) != "" || cmp.Diff(duid, again) != "" || iaid != iaid2 || iaid == other {
		t.Errorf("%x, %x, %x, %x", duid, again, iaid, other)
	}
	if duid, _, err := identity("tun0", nil); err != nil || len(duid) != 18 || duid[1] != 4 {
		t.Errorf("without a hardware address: %x, %v", duid, err)
	}
}

// TestFaultsAreSaidOnce holds that a network that is away does not fill the log.
func TestFaultsAreSaidOnce(t *testing.T) {
	log, said := logtest.NewNullLogger()
	log.SetLevel(logrus.DebugLevel)
	c := &Client{Interface: "none0", State: filepath.Join(t.TempDir(), "x.json"), Log: log}
	r, err := c.runner()
	if err != nil {
		t.Fatal(err)
	}
	_, fault := open(c.Interface)
	for range 100 {
		r.fault(fault)
	}
	if e := said.AllEntries(); len(e) != 1 || !strings.Contains(e[0].Message, "upstream none0: find the interface") {
		t.Errorf("said: %v", e)
	}
	if f := c.Status().Fault; f == "" {
		t.Error("status has no fault")
	}
	r.works()
	if f := c.Status().Fault; f != "" || len(said.AllEntries()) != 2 {
		t.Errorf("%q, and said: %v", f, said.AllEntries())
	}
}

// FuzzReceive: whatever arrives, the machine goes on, and keeps nothing that it
// could not read again.
func FuzzReceive(f *testing.F) {
	q := &dhcpv6.Message{TransactionID: dhcpv6.TransactionID{0, 0, 0}}
	q.Options.Add(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionClientID, OptionData: ourDUID})
	for _, r := range []reply{
		{kind: advertise, give: []given{one, two}, extra: []dhcpv6.Option{pref255}},
		{kind: replied, give: []given{noneOf1, two}, t1: time.Hour, extra: []dhcpv6.Option{rapid}},
		{kind: replied, status: 3}, {kind: replied, top: 1, noPD: true},
		{kind: dhcpv6.MessageTypeReconfigure, noPD: true, extra: []dhcpv6.Option{&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionAuth, OptionData: make([]byte, authSize)}}},
	} {
		for phase := range byte(4) {
			f.Add(phase, r.to(q))
		}
	}
	f.Fuzz(func(t *testing.T, phase byte, message []byte) {
		b := newBed(t)
		if phase%4 > 0 {
			b = begun(t)
			b.server = nil
			b.run([]time.Duration{0, time.Minute, time.Hour + time.Minute, 2 * time.Hour}[phase%4])
		} else {
			b.m.begin(b.now)
			b.run(2 * time.Second)
		}
		if len(message) > 4 { // as one that knows what is asked
			copy(message[1:4], b.m.exchange.xid[:])
		}
		b.m.receive(message, b.now)
		b.m.receive(message, b.now)
		b.server, b.log = nil, nil
		b.run(6 * time.Hour)
		if n := len(b.log); n > 200 {
			t.Errorf("%d messages", n)
		}
		if len(b.m.leases) > maxPrefixes {
			t.Errorf("leases %v", b.m.leases)
		}
		file, err := encode(b.m.kept)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decode(file); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	})
}

// FuzzDecode: what can be read can be written and read again.
func FuzzDecode(f *testing.F) {
	file, err := encode(kept{duid: ourDUID, server: firstDUID, leases: []Lease{{Prefix: ulaPrefix, Valid: t0}}, key: make([]byte, keySize)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(file)
	f.Add([]byte(`{"version":1,"duid":"000300"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := decode(b)
		if err != nil {
			return
		}
		again, err := encode(k)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decode(again)
		if d := cmp.Diff(k, got, byValue, cmp.AllowUnexported(kept{})); err != nil || d != "" {
			t.Errorf("%s: %v\n%s", again, err, d)
		}
	})
}
