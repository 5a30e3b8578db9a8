package clients

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
)

func contains(text, word string) error {
	if !strings.Contains(text, word) {
		return fmt.Errorf("no %q", word)
	}
	return nil
}

func startDhcpcd(l *lab) *process {
	need(l.t, "dhcpcd", "dhcpcd-base")
	return l.guest.start("dhcpcd", "-B", "-d", "eth0")
}

// releaseDhcpcd sends what "dhcpcd -k" sends until it is taken: a signal that
// comes while its script runs is lost on it, and a router advertisement makes it
// run at any time.
func releaseDhcpcd(_ *lab, p *process) {
	p.t.Helper()
	until(p.t, func() error {
		err := contains(p.output.String(), "received SIGALRM")
		if err != nil {
			p.signal(syscall.SIGALRM)
		}
		return err
	})
}

func dhcpcd4() client4 {
	return client4{
		row:   "dhcpcd",
		start: startDhcpcd,
		routes: func(addr string) []string {
			return []string{"default via " + gateway + " dev eth0 proto dhcp src " + addr + "...", gateway + " dev eth0 proto dhcp scope link src " + addr + "..."}
		},
		// Its announcements end when its script has run.
		settled: func(_ *lab, p *process, addr string) {
			until(p.t, func() error { return contains(p.output.String(), "ARP announcing "+addr+" (2 of 2)") })
		},
		release:  releaseDhcpcd,
		resolver: []string{"cat /etc/resolv.conf", "nameserver 9.9.9.9", "domain example.org", "search example.org eng.example.org"},
		mtu:      []string{"ip -4 route show default | grep -o 'mtu .*'", "mtu " + mtu},
		short:    [3]uint32{3, 8, 40},
	}
}

func dhcpcd6() client6 {
	return client6{
		row:      "dhcpcd IPv6",
		start:    startDhcpcd,
		confirms: true,
		settled:  func(l *lab, p *process, _ string) { dhcpcd4().settled(l, p, first) },
		release:  releaseDhcpcd,
		resolver: []string{"cat /etc/resolv.conf", "nameserver 2620:fe::fe"},
	}
}

func TestDhcpcd(t *testing.T)       { t.Parallel(); dhcpcd4().live(t) }
func TestDhcpcdKeeps(t *testing.T)  { t.Parallel(); dhcpcd4().keep(t) }
func TestDhcpcd6(t *testing.T)      { t.Parallel(); dhcpcd6().live(t) }
func TestDhcpcd6Keeps(t *testing.T) { t.Parallel(); dhcpcd6().keep(t) }
