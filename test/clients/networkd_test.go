package clients

import (
	"fmt"
	"syscall"
	"testing"
)

// networkdUnit is what an image ships; nothing in it is for us.
const networkdUnit = `[Match]
Name=eth0
[Network]
DHCP=%s
[DHCPv4]
UseDomains=yes
UseMTU=yes
[DHCPv6]
UseDomains=yes
[IPv6AcceptRA]
UseDomains=yes
`

// startNetworkd runs systemd-networkd without systemd, udev and D-Bus. With /sys
// read only it does not wait for udev.
func startNetworkd(dhcp string) func(*lab) *process {
	return func(l *lab) *process {
		const program = "/lib/systemd/systemd-networkd"
		need(l.t, program, "systemd")
		l.guest.must(`
			mkdir -p /run/systemd/network /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp
			chown -R systemd-network: /run/systemd/netif
			mount -t tmpfs tmpfs /etc/systemd/network
			cat > /run/systemd/network/10-eth0.network <<-'END'
			` + fmt.Sprintf(networkdUnit, dhcp) + `
			END
		`)
		return l.guest.start("env", "SYSTEMD_LOG_LEVEL=debug", "SYSTEMD_LOG_TARGET=console", program)
	}
}

// linkState prints the words of what resolved would read.
const linkState = `sed -n 's/^DNS=//p; s/^DOMAINS=//p' /run/systemd/netif/links/2 | tr ' ' '\n'`

func networkd4() client4 {
	return client4{
		row:   "systemd-networkd",
		start: startNetworkd("ipv4"),
		routes: func(addr string) []string {
			return []string{
				"default via " + gateway + " dev eth0 proto dhcp src " + addr + " metric 1024",
				gateway + " dev eth0 proto dhcp scope link src " + addr + " metric 1024",
			}
		},
		// It keeps its lease for as long as it runs, not over a reboot of the machine:
		// what it does then is what it does when the link comes back. Dormant is a
		// link that 802.1X has not opened, by which only this end goes away.
		crash: func(l *lab) {
			l.guest.must("ip link set eth0 state dormant")
			l.lacks(show4, "inet ")
		},
		restart: func(l *lab) *process {
			l.guest.must("ip link set eth0 state up")
			return nil
		},
		release:  func(_ *lab, p *process) { p.signal(syscall.SIGTERM) },
		resolver: []string{linkState, "9.9.9.9", "example.org", "eng.example.org"},
		short:    [3]uint32{3, 8, 40},
	}
}

func networkd6() client6 {
	return client6{
		row:      "systemd-networkd IPv6",
		start:    startNetworkd("ipv6"),
		resolver: []string{linkState, "2620:fe::fe", "example.org", "eng.example.org"},
		release:  func(_ *lab, p *process) { p.kill(syscall.SIGTERM) },
		keeps:    true,
		// It may wait 10 s longer than T1 and T2 say.
		preferred: 40,
	}
}

func TestNetworkd(t *testing.T)       { t.Parallel(); networkd4().live(t) }
func TestNetworkdKeeps(t *testing.T)  { t.Parallel(); networkd4().keep(t) }
func TestNetworkd6(t *testing.T)      { t.Parallel(); networkd6().live(t) }
func TestNetworkd6Keeps(t *testing.T) { t.Parallel(); networkd6().keep(t) }
