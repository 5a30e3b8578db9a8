package vmlink

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	logtest "github.com/sirupsen/logrus/hooks/test"

	"github.com/slash32/slash32/pkg/lease"
	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/responder"
)

func TestKeeper(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.json")
	a, b := mac.MustParse("52:54:00:ab:cd:01"), mac.MustParse("52:54:00:ab:cd:02")
	nics := []responder.NIC{{GuestMAC: a}, {GuestMAC: b}}
	if k := openKeeper(path, nics, quiet()); k != nil {
		t.Error("a file that is not there is opened")
	}
	if k := openKeeper("", nics, quiet()); k.descriptor() != -1 {
		t.Error("no path has a descriptor")
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddr
	want := responder.Kept{
		Profile: responder.ProfileClassic, Booting: 1, Booted: 2,
		V4: lease.V4{Addr: addr("10.20.0.7"), Bits: 24, Server: addr("10.9.0.11"), From: addr("10.9.0.12"), Expires: 1_800_000_000},
	}
	want.V6[0] = lease.V6{Addr: addr("2001:db8::7"), Expires: 1_800_000_000}
	want.Prefixes[0] = lease.Prefix{Prefix: netip.MustParsePrefix("2001:db8:2::/64"), Via: addr("fe80::7"), IAID: 7, Expires: 1_800_000_000}
	k := openKeeper(path, nics, quiet())
	k.keep(0, responder.Kept{Booting: 1})
	k.keep(0, want)
	k.keep(1, responder.Kept{Profile: responder.ProfileRouted})
	k.close()

	equal := cmp.Comparer(func(x, y responder.Kept) bool { return x == y })
	// Another order of NICs, and one that is new.
	k = openKeeper(path, []responder.NIC{nics[1], {GuestMAC: mac.MustParse("52:54:00:ab:cd:03")}, nics[0]}, quiet())
	for i, want := range []responder.Kept{{Profile: responder.ProfileRouted}, {}, want} {
		if d := cmp.Diff(want, k.kept(i), equal); d != "" {
			t.Errorf("NIC %d (-want +got):\n%s", i, d)
		}
	}
	if k.state.Seq != 3 {
		t.Errorf("number %d", k.state.Seq)
	}
	k.close()

	// A torn file is written anew; a newer number is not forgotten with one slot.
	if err := os.WriteFile(path, []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	k = openKeeper(path, nics, quiet())
	k.keep(0, want)
	k.close()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := lease.Decode(text); err != nil || s.NICs[0].V4 != want.V4 {
		t.Errorf("%+v, %v", s, err)
	}
	// What cannot be written is no reason to stop.
	k = openKeeper(path, nics, quiet())
	k.close()
	k.keep(0, responder.Kept{})
}

// TestKeeperFull: what does not fit is said, costs no other NIC what it has, and
// is written once there is room.
func TestKeeperFull(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.json")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var nics []responder.NIC
	for i := range 20 {
		nics = append(nics, responder.NIC{GuestMAC: mac.Addr{0x52, 0x54, 5: uint8(i)}})
	}
	var full responder.Kept
	for i := range full.Prefixes {
		full.Prefixes[i] = lease.Prefix{
			Prefix: netip.MustParsePrefix(fmt.Sprintf("2001:db8:aaaa:bbb%d::/64", i)), Via: netip.MustParseAddr("fe80::1111:2222:3333:4444"),
			IAID: 1<<32 - 1, Expires: 1_800_000_000,
		}
	}
	log, hook := logtest.NewNullLogger()
	k := openKeeper(path, nics, log)
	defer k.close()
	onDisk := func() (with int) {
		t.Helper()
		s, err := k.read()
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range s.NICs {
			if len(n.Prefixes) > 0 {
				with++
			}
		}
		return with
	}
	for i := range nics {
		k.keep(i, full)
	}
	fits := onDisk()
	if fits < 7 || fits == len(nics) {
		t.Errorf("%d NICs fit", fits)
	}
	if n := len(hook.AllEntries()); n != 1 || !strings.Contains(hook.LastEntry().Data["error"].(error).Error(), "a slot has 8192") {
		t.Errorf("%d lines, %v", n, hook.LastEntry())
	}
	k.keep(19, responder.Kept{Profile: responder.ProfileRouted})
	if s, err := k.read(); err != nil || s.NICs[19].Profile != "routed" || onDisk() != fits {
		t.Errorf("another NIC is not written: %v", err)
	}
	k.keep(0, responder.Kept{})
	k.keep(18, full)
	if s, err := k.read(); err != nil || len(s.NICs[18].Prefixes) != len(full.Prefixes) || onDisk() != fits {
		t.Errorf("what there is room for is not written: %v", err)
	}
}

// TestSpeaks: who delegates tells the agent.
func TestSpeaks(t *testing.T) {
	b := binding(2)
	if speaks(b) {
		t.Error("an ordinary VM has something for the agent")
	}
	b.NICs[1].V6.Prefixes = responder.Prefixes{{Mode: responder.ModeSLAAC}}
	if speaks(b) {
		t.Error("one with SLAAC has")
	}
	b.NICs[1].V6.Prefixes = append(b.NICs[1].V6.Prefixes, responder.Prefix{Mode: responder.ModeDelegate})
	if !speaks(b) {
		t.Error("one that delegates has nothing")
	}
}

// TestRelayedVM: a message goes to the agent's socket, and what comes back reaches
// the NIC that it names.
func TestRelayedVM(t *testing.T) {
	dir := t.TempDir()
	r, err := openRelay(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	if err := r.WriteMessage([]byte("x")); err == nil {
		t.Error("a message was taken though nobody listens")
	}
	agent, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, uplinkSocket), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	if err := r.WriteMessage([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	if n, err := agent.Read(buf); err != nil || string(buf[:n]) != "hello" {
		t.Errorf("the agent got %q, %v", buf[:n], err)
	}

	n := binding(1).NICs[0]
	n.Relay = &responder.Relay{Servers4: []netip.Addr{netip.MustParseAddr("10.9.0.11")}}
	link, err := responder.Compile(n)
	if err != nil {
		t.Fatal(err)
	}
	server := responder.NewServer(&frames{closed: make(chan struct{})}, link, responder.Limits{}, quiet())
	server.Relay(r)
	done := make(chan error)
	go func() { done <- r.serve(t.Context(), []nic{{server: server}}) }()
	to := &net.UnixAddr{Name: filepath.Join(dir, relaySocket), Net: "unixgram"}
	for _, message := range [][]byte{nil, {1}, {1, 9, 4, 0}, {2, 0, 4, 0}, make([]byte, 1600), {1, 0, 5, 0}, {1, 0, 4, 0}} {
		if _, err := agent.WriteToUnix(message, to); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(10 * time.Second)
	for server.Counters().Verdicts[responder.DHCP4BadAnswer] != 1 {
		if time.Now().After(deadline) {
			t.Fatalf("counters %+v", server.Counters())
		}
		<-time.After(time.Millisecond)
	}
	r.close()
	if err := <-done; err == nil || errors.Is(err, os.ErrExist) {
		t.Errorf("serving ended with %v", err)
	}
}
