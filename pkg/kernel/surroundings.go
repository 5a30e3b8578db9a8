package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/firewall"
)

// Surroundings are what of the host's network is not slash32's and decides whether
// guests are reached.
type Surroundings struct {
	Rules    firewall.Ruleset
	Defaults []DefaultRoute    // of table main, the best first, IPv4 before IPv6
	Settings map[string]string // by path below /proc/sys; one that does not exist lacks
	Legacy   []string          // tables of legacy iptables, which are not read
}

// DefaultRoute is a default route of table main.
type DefaultRoute struct {
	IPv6     bool
	Link     string
	Via      netip.Addr // not valid: on the link
	Metric   uint32
	Protocol uint8 // rtm_protocol
}

// bridgeNFPaths are br_netfilter's settings, per family.
var bridgeNFPaths = [...]string{"net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"}

// Surroundings reads them, with the settings of the named links and of those with a
// default route. It takes CAP_NET_ADMIN.
func (k *Kernel) Surroundings(ctx context.Context, links []string) (Surroundings, error) {
	var s Surroundings
	var err error
	if s.Rules, err = k.Forwarding(ctx); err != nil {
		return s, err
	}
	links = slices.Clone(links)
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		routes, err := k.defaultRoutes(ctx, family, unix.RTPROT_UNSPEC)
		if err != nil {
			return s, fmt.Errorf("list the default routes: %w", err)
		}
		slices.SortStableFunc(routes, func(a, b route) int { return int(int64(a.Metric) - int64(b.Metric)) })
		for _, x := range routes {
			if name := k.name(x.index); name != "" {
				s.Defaults = append(s.Defaults, DefaultRoute{IPv6: family == unix.AF_INET6, Link: name, Via: x.Via, Metric: x.Metric, Protocol: x.protocol})
				links = append(links, name)
			}
		}
	}
	paths := append([]string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/all/rp_filter"}, bridgeNFPaths[:]...)
	slices.Sort(links)
	for _, l := range slices.Compact(links) {
		for _, name := range []string{"ipv4/conf/%s/rp_filter", "ipv4/conf/%s/forwarding", "ipv6/conf/%s/accept_ra", "ipv6/conf/%s/forwarding"} {
			paths = append(paths, "net/"+strings.Replace(name, "%s", l, 1))
		}
	}
	s.Settings = map[string]string{}
	for _, p := range paths {
		v, err := k.readSysctl(p)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return s, err
		}
		s.Settings[p] = v
	}
	err = k.inside(func() error {
		for _, file := range []string{"ip_tables_names", "ip6_tables_names"} {
			// Without the file there is no legacy iptables in this kernel.
			s.Legacy = append(s.Legacy, strings.Fields(readFile("/proc/thread-self/net/"+file))...)
		}
		return nil
	})
	slices.Sort(s.Legacy)
	s.Legacy = slices.Compact(s.Legacy)
	return s, err
}

// Index finds an interface's index by its name, 0 when there is none.
func (k *Kernel) Index(name string) int { return k.index(name) }
