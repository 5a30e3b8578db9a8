package kernel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/plan"
)

const (
	resolvConf        = "/etc/resolv.conf"
	resolvConfSystemd = "/run/systemd/resolve/resolv.conf" // the upstream servers behind 127.0.0.53
	maxResolvConf     = 64 << 10

	fibMatch       = 0x2000 // RTM_F_FIB_MATCH: answer with the route, not with the way
	netconfIfindex = 1      // NETCONFA_IFINDEX
)

// Facts reads what planning needs to know of the host and of the interfaces that
// its networks name.
func (k *Kernel) Facts(ctx context.Context, links ...string) (plan.Facts, error) {
	f := plan.Facts{MTU: map[string]uint16{}}
	f.Host, _ = os.Hostname() // without one, DHCP servers are not told it
	_, ok := k.sysctls["net/ipv6/"]
	f.NoIPv6 = !ok
	var err error
	if f.BridgeNF, err = k.bridgeNF(); err != nil {
		return plan.Facts{}, err
	}
	if f.Uplink4, err = k.uplink(ctx, anywhere4); err != nil {
		return plan.Facts{}, fmt.Errorf("find the IPv4 uplink: %w", err)
	}
	if f.Uplink6, err = k.uplink(ctx, anywhere6); err != nil {
		return plan.Facts{}, fmt.Errorf("find the IPv6 uplink: %w", err)
	}
	advertised, err := k.defaultRoutes(ctx, unix.AF_INET6, unix.RTPROT_RA)
	if err != nil {
		return plan.Facts{}, fmt.Errorf("find the default routes from router advertisements: %w", err)
	}
	if f.AcceptRA, err = k.acceptRA(advertised); err != nil {
		return plan.Facts{}, err
	}
	// The MTU of every interface that a network may name as its uplink.
	if err := k.mtus(ctx, f.MTU); err != nil {
		return plan.Facts{}, err
	}
	if f.Links, err = k.links(ctx, f, links); err != nil {
		return plan.Facts{}, err
	}
	f.Resolvers = resolvers(readFile(resolvConf), readFile(resolvConfSystemd))
	return f, nil
}

// bridgeNF tells whether the tables see bridged frames, of either family.
func (k *Kernel) bridgeNF() (bool, error) {
	for _, path := range bridgeNFPaths {
		v, err := k.readSysctl(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		if v == "1" {
			return true, nil
		}
	}
	return false, nil
}

// uplink names the interface of the default route in main. A whole BGP table
// may be in main: where the kernel answers a lookup with the default route, the
// table is not listed.
func (k *Kernel) uplink(ctx context.Context, dst netip.Addr) (string, error) {
	fixed := make([]byte, routeLength)
	fixed[0], fixed[1] = family(dst), byte(dst.BitLen())
	copy(fixed[8:], host32(fibMatch))
	var found route
	err := k.rt.get(newMessage(unix.RTM_GETROUTE, 0, fixed).attr(unix.RTA_DST, dst.AsSlice()), func(typ uint16, b []byte) {
		if x, ok := parseRoute(b); ok && typ == unix.RTM_NEWROUTE {
			found = x
		}
	})
	if err == nil && isDefault(found) && found.index != 0 {
		return k.name(found.index), nil
	}
	routes, err := k.defaultRoutes(ctx, family(dst), unix.RTPROT_UNSPEC)
	return k.best(routes), err
}

func isDefault(x route) bool {
	return x.Table == unix.RT_TABLE_MAIN && x.Dst.IsValid() && x.Dst.Bits() == 0 && x.kind == unix.RTN_UNICAST
}

// defaultRoutes lists the default routes in main, of one protocol unless it is
// RTPROT_UNSPEC.
func (k *Kernel) defaultRoutes(ctx context.Context, family, protocol byte) ([]route, error) {
	fixed := make([]byte, routeLength)
	fixed[0], fixed[4], fixed[5], fixed[7] = family, unix.RT_TABLE_MAIN, protocol, unix.RTN_UNICAST
	m := newMessage(unix.RTM_GETROUTE, 0, fixed)
	var got []route
	err := k.rt.dump(ctx, m, func() { got = nil }, func(typ uint16, b []byte) {
		x, ok := parseRoute(b)
		if ok && typ == unix.RTM_NEWROUTE && isDefault(x) && (protocol == unix.RTPROT_UNSPEC || x.protocol == protocol) {
			if x.several {
				x.index = firstHop(b)
			}
			got = append(got, x)
		}
	})
	if noFamily(err) || errors.Is(err, unix.ENOENT) { // nobody has used main yet
		return nil, nil
	}
	return got, err
}

// firstHop is the interface of the first next hop of a multipath route.
func firstHop(b []byte) (index int) {
	attrs(b[routeLength:], func(typ uint16, d []byte) {
		if typ == unix.RTA_MULTIPATH && len(d) >= unix.SizeofRtNexthop {
			index = int(hostU32(d[4:]))
		}
	})
	return index
}

// best names the interface of the route with the lowest metric.
func (k *Kernel) best(routes []route) string {
	routes = slices.DeleteFunc(slices.Clone(routes), func(x route) bool { return x.index == 0 })
	if len(routes) == 0 {
		return ""
	}
	best := slices.MinFunc(routes, func(a, b route) int {
		return cmp.Or(cmp.Compare(a.Metric, b.Metric), cmp.Compare(a.index, b.index))
	})
	return k.name(best.index)
}

// acceptRA names the interfaces whose default route the kernel has from router
// advertisements.
func (k *Kernel) acceptRA(routes []route) ([]string, error) {
	var names []string
	for _, x := range routes {
		name := k.name(x.index)
		if name == "" || slices.Contains(names, name) {
			continue
		}
		v, err := k.readSysctl("net/ipv6/conf/" + name + "/accept_ra")
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if v == "1" || v == "2" { // not where a daemon handles them
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// mtus reads the MTU of every interface but our bridges: any may be named as
// an uplink. Listing the links would cost ten times as much: the kernel lists the
// settings of a thousand bridges with them.
func (k *Kernel) mtus(ctx context.Context, out map[string]uint16) error {
	var indexes []int
	m := newMessage(unix.RTM_GETNETCONF, 0, []byte{unix.AF_INET})
	err := k.rt.dump(ctx, m, func() { indexes = nil }, func(typ uint16, b []byte) {
		if len(b) < 4 || typ != unix.RTM_NEWNETCONF {
			return
		}
		attrs(b[4:], func(typ uint16, d []byte) {
			if i := int(int32(hostU32(d))); typ == netconfIfindex && i > 0 {
				indexes = append(indexes, i)
			}
		})
	})
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for _, i := range indexes {
		name := k.name(i)
		req, err := unix.NewIfreq(name)
		if err != nil || name == "" {
			continue
		}
		if k.gatewayMAC(name) || unix.IoctlIfreq(k.ioctl, unix.SIOCGIFMTU, req) != nil {
			continue
		}
		if mtu := req.Uint32(); mtu <= maxMTU {
			out[name] = uint16(mtu)
		}
	}
	return nil
}

func readFile(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxResolvConf))
	if err != nil {
		return ""
	}
	return string(b)
}

// resolvers are the servers of the first text that names any a guest could
// reach: no loopback (a stub on the host) and no link-local address.
func resolvers(texts ...string) []netip.Addr {
	for _, text := range texts {
		var out []netip.Addr
		for line := range strings.Lines(text) {
			f := strings.Fields(line)
			if len(f) < 2 || f[0] != "nameserver" {
				continue
			}
			a, err := netip.ParseAddr(f[1])
			if err != nil {
				continue
			}
			a = a.Unmap()
			if a.IsLoopback() || a.IsUnspecified() || a.IsLinkLocalUnicast() || slices.Contains(out, a) {
				continue
			}
			out = append(out, a)
		}
		if len(out) > 0 {
			return out
		}
	}
	return nil
}
