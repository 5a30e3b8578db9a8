package clients

import (
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
)

// networkdLAN is the second link of a router that networkd makes.
const networkdLAN = `[Match]
Name=lan0
[Network]
DHCPPrefixDelegation=yes
IPv6AcceptRA=no
[DHCPPrefixDelegation]
UplinkInterface=eth0
SubnetId=0
Token=::1
`

func networkdPD() client6pd {
	return client6pd{
		row: "systemd-networkd",
		start: func(l *lab, hint int) *process {
			option := ""
			if hint != noHint {
				option = fmt.Sprintf("PrefixDelegationHint=::/%d", hint)
			}
			l.guest.must(`
				mkdir -p /run/systemd/network/10-eth0.network.d
				cat > /run/systemd/network/10-eth0.network.d/hint.conf <<-'END'
				[DHCPv6]
				` + option + `
				END
				cat > /run/systemd/network/20-lan0.network <<-'END'
				` + networkdLAN + `
				END
			`)
			return startNetworkd("ipv6")(l)
		},
		resolver:  networkd6().resolver,
		release:   networkd6().release,
		keeps:     true,
		preferred: networkd6().preferred,
	}
}

// dhcpcdConf is for a router: an address for itself, a prefix for lan0.
const dhcpcdConf = `nodev
ipv6only
duid
option rapid_commit
option domain_name_servers, domain_search
allowinterfaces eth0 lan0
noipv6rs
interface eth0
ipv6rs
iaid 1
ia_na 1
ia_pd 2%s lan0/0/64
`

func dhcpcdPD() client6pd {
	return client6pd{
		row: "dhcpcd",
		start: func(l *lab, hint int) *process {
			need(l.t, "dhcpcd", "dhcpcd-base")
			option := ""
			if hint != noHint {
				option = fmt.Sprintf("/::/%d", hint)
			}
			l.guest.must("cat > /run/dhcpcd.conf <<-'END'\n" + fmt.Sprintf(dhcpcdConf, option) + "END\n")
			return l.guest.start("dhcpcd", "-B", "-d", "-f", "/run/dhcpcd.conf", "eth0", "lan0")
		},
		resolver: dhcpcd6().resolver,
		// A signal that comes while its script runs is lost on it. The last of its
		// advertisements comes a second after the first.
		settled: func(p *process) {
			until(p.t, func() error {
				if n := strings.Count(p.output.String(), "sending NA for "+first6); n < 3 {
					return fmt.Errorf("%d advertisements of its address, want 3", n)
				}
				return nil
			})
		},
		release: dhcpcd6().release,
	}
}

func dhclientPD() client6pd {
	run := strings.Replace(dhclientRun6, "-6", "-6 -N -P", 1)
	return client6pd{
		row: "ISC dhclient -6 -N -P",
		start: func(l *lab, hint int) *process {
			need(l.t, "dhclient", "isc-dhcp-client")
			words := strings.Fields(run)
			if hint != noHint {
				words = append(words[:len(words)-1], "--prefix-len-hint", fmt.Sprint(hint), "eth0")
			}
			return l.guest.start(words...)
		},
		release: func(l *lab, p *process) {
			p.kill(syscall.SIGKILL)
			l.guest.must(strings.ReplaceAll(run, "-d ", "-r "))
		},
		resolver: dhclient6().resolver,
		aged: func(l *lab, _ *process, old netip.Prefix) {
			l.has("sed -n '/iaprefix "+strings.ReplaceAll(old.String(), "/", "\\/")+"/,/}/p' /var/lib/dhcp/dhclient6.leases", "preferred-life 0;")
		},
		noRapid: true,
		byHand:  true,
	}
}

const dhcp6cConf = `interface eth0 {
	send ia-na 1;
	send ia-pd 2;
	send rapid-commit;
	request domain-name-servers;
	request domain-name;
	script "/etc/wide-dhcpv6/dhcp6c-script";
};
id-assoc na 1 { };
id-assoc pd 2 {
	%s
	prefix-interface lan0 { sla-id 0; sla-len %d; ifid 1; };
};
`

func dhcp6c() client6pd {
	return client6pd{
		row: "wide-dhcpv6 dhcp6c",
		start: func(l *lab, hint int) *process {
			need(l.t, "dhcp6c", "wide-dhcpv6-client")
			prefix, sla := "", 0
			if hint != noHint {
				prefix, sla = fmt.Sprintf("prefix ::/%d infinity;", hint), 64-hint
			}
			l.guest.must("mkdir -p /var/lib/dhcpv6; cat > /run/dhcp6c.conf <<-'END'\n" + fmt.Sprintf(dhcp6cConf, prefix, sla) + "END\n")
			return l.guest.start("dhcp6c", "-f", "-D", "-c", "/run/dhcp6c.conf", "-p", "/run/dhcp6c.pid", "eth0")
		},
		release:  func(_ *lab, p *process) { p.signal(syscall.SIGTERM) },
		resolver: []string{"cat /etc/resolv.conf", "nameserver 2620:fe::fe"},
		// It gives its address no lifetimes and removes it when the prefix ends.
		aged: func(_ *lab, p *process, old netip.Prefix) {
			until(p.t, func() error { return contains(p.output.String(), "update a prefix "+old.String()+" pltime=0,") })
		},
		// With a T2 below 30 s it takes that, and 18 s for T1.
		preferred: 36,
	}
}

func TestNetworkdPD(t *testing.T)      { t.Parallel(); networkdPD().live(t) }
func TestNetworkdPDKeeps(t *testing.T) { t.Parallel(); networkdPD().keep(t) }
func TestDhcpcdPD(t *testing.T)        { t.Parallel(); dhcpcdPD().live(t) }
func TestDhcpcdPDKeeps(t *testing.T)   { t.Parallel(); dhcpcdPD().keep(t) }
func TestDhclientPD(t *testing.T)      { t.Parallel(); dhclientPD().live(t) }
func TestDhclientPDKeeps(t *testing.T) { t.Parallel(); dhclientPD().keep(t) }
func TestDhcp6c(t *testing.T)          { t.Parallel(); dhcp6c().live(t) }
func TestDhcp6cKeeps(t *testing.T)     { t.Parallel(); dhcp6c().keep(t) }
