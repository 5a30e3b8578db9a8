package plan_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/plan"
)

// TestStandIn: what stands in for a prefix from upstream is leased for a short time, so
// that a guest soon asks for the real one; nothing else is.
func TestStandIn(t *testing.T) {
	ula, global := netip.MustParsePrefix("fd00:1:2:3::/64"), netip.MustParsePrefix("2001:db8:1::/64")
	for _, c := range []struct {
		name     string
		upstream string
		lease    time.Duration
		prefixes []intent.Prefix
		auto6    bool
		addr     string
		want     uint32
	}{
		{"stands in", "eth0", time.Hour, []intent.Prefix{{Net: ula, Mode: "delegate", Auto: 64}}, false, "", 600},
		{"an address", "eth0", time.Hour, nil, true, "fd00:1:2:3::1", 600},
		{"shorter already", "eth0", 5 * time.Minute, []intent.Prefix{{Net: ula, Mode: "delegate", Auto: 64}}, false, "", 300},
		{"on its way out", "eth0", time.Hour, []intent.Prefix{{Net: ula, Mode: "delegate", Auto: 64, Deprecated: true}, {Net: global, Mode: "delegate", Auto: 64}}, false, "", 3600},
		{"from upstream", "eth0", time.Hour, []intent.Prefix{{Net: global, Mode: "delegate", Auto: 64}}, false, "", 3600},
		{"the pool is unique local", "", time.Hour, []intent.Prefix{{Net: ula, Mode: "delegate", Auto: 64}}, false, "", 3600},
		{"given", "eth0", time.Hour, []intent.Prefix{{Net: ula, Mode: "delegate"}}, false, "", 3600},
	} {
		n := network("default")
		n.Pool6 = config.Pool6{Upstream: c.upstream, ULA: c.upstream == ""}
		nic := intent.NIC{
			MAC: mac.MustParse("52:54:00:ab:cd:01"), Bridge: "s32-web1", Network: n, Lease: c.lease,
			Prefixes: c.prefixes, Auto6: c.auto6,
		}
		if c.addr != "" {
			nic.Addrs6 = []netip.Addr{netip.MustParseAddr(c.addr)}
		}
		vm := intent.VM{Name: "web1", NICs: []intent.NIC{nic}}
		d := plan.Build([]intent.VM{vm}, config.Config{Networks: map[string]config.Network{"default": n}}, plan.Facts{})
		if v6 := d.Bindings[vm.UUID].NICs[0].V6; v6.Preferred != c.want || v6.Valid != c.want {
			t.Errorf("%s: leased for %d and %d s, want %d", c.name, v6.Preferred, v6.Valid, c.want)
		}
	}
}
