package clients

import (
	"strings"
	"syscall"
	"testing"
)

const (
	dhclientRun  = "dhclient -4 -d -v -cf /etc/dhcp/dhclient.conf -pf /run/dhclient.pid -lf /var/lib/dhcp/dhclient.leases eth0"
	dhclientRun6 = "dhclient -6 -d -v -pf /run/dhclient6.pid -lf /var/lib/dhcp/dhclient6.leases eth0"
)

func dhclient4() client4 {
	return client4{
		row: "ISC dhclient",
		start: func(l *lab) *process {
			need(l.t, "dhclient", "isc-dhcp-client")
			return l.guest.start(strings.Fields(dhclientRun)...)
		},
		// Those of the set-up that the program is named after.
		routes: func(string) []string {
			return []string{"default via " + gateway + " dev eth0", gateway + " dev eth0 scope link"}
		},
		release: func(l *lab, p *process) {
			p.kill(syscall.SIGKILL)
			l.guest.must(strings.ReplaceAll(dhclientRun, "-d ", "-r "))
		},
		resolver: []string{"cat /etc/resolv.conf", "nameserver 9.9.9.9", "domain example.org", "search example.org. eng.example.org."},
		short:    [3]uint32{2, 6, 30},
	}
}

// without121 asks for all that Debian's configuration has but the classless
// routes.
func without121() client4 {
	c := dhclient4()
	start := c.start
	c.row, c.classic = "ISC dhclient without 121", true
	c.start = func(l *lab) *process {
		l.guest.must(`sed -i 's/rfc3442-classless-static-routes, //' /etc/dhcp/dhclient.conf
			grep -q 'interface-mtu' /etc/dhcp/dhclient.conf`)
		return start(l)
	}
	c.routes = func(addr string) []string {
		return []string{"default via " + router + " dev eth0", "192.168.1.0/24 dev eth0 proto kernel scope link src " + addr}
	}
	return c
}

func TestDhclient(t *testing.T)                { t.Parallel(); dhclient4().live(t) }
func TestDhclientKeeps(t *testing.T)           { t.Parallel(); dhclient4().keep(t) }
func TestDhclientWithout121(t *testing.T)      { t.Parallel(); without121().live(t) }
func TestDhclientWithout121Keeps(t *testing.T) { t.Parallel(); without121().keep(t) }

func dhclient6() client6 {
	return client6{
		row: "ISC dhclient -6",
		start: func(l *lab) *process {
			need(l.t, "dhclient", "isc-dhcp-client")
			return l.guest.start(strings.Fields(dhclientRun6)...)
		},
		confirms: true,
		release: func(l *lab, p *process) {
			p.kill(syscall.SIGKILL)
			l.guest.must(strings.ReplaceAll(dhclientRun6, "-d ", "-r "))
		},
		resolver: []string{"cat /etc/resolv.conf", "nameserver 2620:fe::fe", "search example.org. eng.example.org."},
	}
}

func TestDhclient6(t *testing.T)      { t.Parallel(); dhclient6().live(t) }
func TestDhclient6Keeps(t *testing.T) { t.Parallel(); dhclient6().keep(t) }
