package reconcile_test

import (
	"strings"
	"testing"
)

// The host answers for a guest's addresses on the uplink while the guest is there,
// and says so when it begins to; not when it starts anew itself.
func TestProxyNDP(t *testing.T) {
	b := newBed(t)
	n := b.config.Networks["default"]
	n.Uplink, n.ProxyNDP = "up0", true
	b.network("default", n)
	b.restart()
	proxies := func() string { return strings.ReplaceAll(b.sh("ip -6 neigh show proxy"), " \n", "\n") }

	b.run(1, annotated(`ipv4="10.42.0.7" ipv6="2001:db8:1::7"`))
	b.pass()
	if got := <-b.announced; got != "up0 [2001:db8:1::7]" {
		t.Errorf("announced %s", got)
	}
	if got := proxies(); got != "2001:db8:1::7 dev up0 proxy proto 32\n" {
		t.Errorf("proxies: %s", got)
	}
	b.restart()
	b.pass()
	if n := b.writes(); n != 0 {
		t.Errorf("%d writes", n)
	}
	b.sh("ip link set up0 down") // takes the proxies along
	if got := proxies(); got != "" {
		t.Fatalf("proxies: %s", got)
	}
	b.sh("ip link set up0 up")
	b.run(2, annotated(`ipv6="2001:db8:1::8"`))
	b.pass()
	if got := <-b.announced; got != "up0 [2001:db8:1::7 2001:db8:1::8]" {
		t.Errorf("announced %s", got)
	}
	b.end(1)
	b.pass()
	if got := proxies(); got != "2001:db8:1::8 dev up0 proxy proto 32\n" {
		t.Errorf("proxies: %s", got)
	}
	b.end(2)
	b.pass()
	if got := proxies(); got != "" {
		t.Errorf("proxies of nobody: %s", got)
	}
	b.stop()
	if len(b.announced) > 0 {
		t.Errorf("announced %s, too", <-b.announced)
	}
}
