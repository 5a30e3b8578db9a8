package clients

import (
	"fmt"
	"strings"
	"testing"
)

// TestDhcpcdReconfigured: a client that accepts a RECONFIGURE has its new prefix
// half an hour before it would have asked.
func TestDhcpcdReconfigured(t *testing.T) {
	t.Parallel()
	need(t, "dhcpcd", "dhcpcd-base")
	l, c := newLab6(t, nil), dhcpcdPD()
	conf := strings.Replace(fmt.Sprintf(dhcpcdConf, ""), "ipv6only\n", "ipv6only\noption dhcp6_reconfigure_accept\n", 1)
	l.guest.must("cat > /run/dhcpcd.conf <<-'END'\n" + conf + "END\n")
	p := l.guest.start("dhcpcd", "-B", "-d", "-f", "/run/dhcpcd.conf", "eth0", "lan0")
	c.follow(l, l.prefix(pool, 64))
	c.settled(p)
	if n := l.count("dhcp6_renew") + l.count("dhcp6_rebind"); n != 0 {
		t.Fatalf("it has renewed %d times by itself", n)
	}
	l.change(renumber)
	l.sees("dhcp6_renew", 0)
	c.follow(l, l.prefix(nextPool, 64))
}
