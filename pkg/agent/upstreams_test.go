package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/sirupsen/logrus"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/spool"
	"github.com/slash32/slash32/test/wait"
)

// routerDUID is the server's, in the state file and in its answer.
var routerDUID = &dhcpv6.DUIDLL{HWType: 1, LinkLayerAddr: net.HardwareAddr{2, 0, 0, 0, 0, 0x99}}

// router answers one message on srv0, which is in a namespace of its own, and sends
// it to got. The other end is up0 in ours.
func router(t *testing.T) (ours netns.NsHandle, got chan *dhcpv6.Message) {
	t.Helper()
	runtime.LockOSThread() // the thread dies with the test
	do := func(lines ...string) {
		t.Helper()
		for _, line := range lines {
			f := strings.Fields(line)
			if out, err := exec.Command(f[0], f[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", line, err, out)
			}
		}
	}
	theirs, err := netns.New()
	if err != nil {
		t.Fatalf("make a network namespace (it takes root): %v", err)
	}
	t.Cleanup(func() { _ = theirs.Close() })
	if ours, err = netns.New(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ours.Close() })
	do("sysctl -qw net.ipv6.conf.default.accept_dad=0", "ip link add up0 type veth peer name srv0")
	l, err := netlink.LinkByName("srv0")
	if err == nil {
		err = netlink.LinkSetNsFd(l, int(theirs))
	}
	if err == nil {
		err = netns.Set(theirs)
	}
	if err != nil {
		t.Fatal(err)
	}
	do("sysctl -qw net.ipv6.conf.srv0.accept_dad=0", "ip link set srv0 up")
	ifi, err := net.InterfaceByName("srv0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.ListenMulticastUDP("udp6", ifi, &net.UDPAddr{IP: dhcpv6.AllDHCPRelayAgentsAndServers, Port: 547})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := netns.Set(ours); err != nil {
		t.Fatal(err)
	}
	do("ip link set up0 up")
	got = make(chan *dhcpv6.Message, 1)
	go func() {
		b := make([]byte, 1500)
		n, from, err := c.ReadFromUDP(b)
		if err != nil {
			return
		}
		m, err := dhcpv6.MessageFromBytes(b[:n])
		if err != nil {
			return
		}
		if reply, err := dhcpv6.NewReplyFromMessage(m, dhcpv6.WithServerID(routerDUID)); err == nil {
			_, _ = c.WriteTo(reply.ToBytes(), from)
		}
		got <- m
	}()
	return ours, got
}

// TestReleaseAfterAway: the prefix of an interface that the configuration asked on
// when the last agent ran, and does not any more, is given back; one that has ended
// is forgotten.
func TestReleaseAfterAway(t *testing.T) {
	ours, got := router(t)
	dirs := spool.Dirs{State: t.TempDir()}
	keep := func(link string, valid time.Time) {
		t.Helper()
		path := dirs.UpstreamFile(link)
		text := fmt.Sprintf(`{"version":1,"duid":"00030001525400000001","iaid":7,"server":"%x","prefixes":[{"prefix":"2001:db8:f00::/56","valid":%d}]}`,
			routerDUID.ToBytes(), valid.Unix())
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	keep("gone0", time.Now().Add(-time.Hour))
	keep("up0", time.Now().Add(time.Hour))
	log := logrus.New()
	log.SetOutput(t.Output())
	u := newUpstreams(dirs, func(string) {}, log)
	u.set(config.Default())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // it has its sockets in the namespace of its thread
		err := netns.Set(ours)
		if err == nil {
			err = u.run(ctx)
		}
		done <- err
	}()
	wait.For(t, time.Minute, "nothing is kept", func() bool {
		for _, link := range []string{"gone0", "up0"} {
			var f struct{ Prefixes []json.RawMessage }
			if b, err := os.ReadFile(dirs.UpstreamFile(link)); err != nil || json.Unmarshal(b, &f) != nil || len(f.Prefixes) > 0 {
				return false
			}
		}
		return true
	})
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	select {
	case m := <-got:
		if p := m.Options.OneIAPD(); m.MessageType != dhcpv6.MessageTypeRelease || p == nil || len(p.Options.Prefixes()) != 1 ||
			p.Options.Prefixes()[0].Prefix.String() != "2001:db8:f00::/56" {
			t.Errorf("the router is sent %s", m.Summary())
		}
	default:
		t.Error("the router is told nothing")
	}
}
