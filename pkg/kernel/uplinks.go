package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/plan"
)

const ifaProto = 11 // IFA_PROTO, which golang.org/x/sys/unix lacks

// Beyond documentation prefixes nothing is known of these: what routes they have
// are default routes, mostly.
var (
	anywhere4 = netip.AddrFrom4([4]byte{192, 0, 2, 1})
	anywhere6 = netip.AddrFrom16([16]byte{0: 0x3f, 1: 0xff, 15: 1})
)

// links reads what planning needs to know of interfaces; those that are not there
// are left out.
func (k *Kernel) links(ctx context.Context, f plan.Facts, names []string) (map[string]plan.Link, error) {
	out := map[string]plan.Link{}
	for _, name := range append([]string{f.Uplink4, f.Uplink6}, names...) {
		if _, done := out[name]; done || name == "" {
			continue
		}
		index := k.index(name)
		if index == 0 {
			continue
		}
		l, err := k.link(ctx, name, index)
		if err != nil {
			return nil, fmt.Errorf("look at interface %s: %w", name, err)
		}
		out[name] = l
	}
	return out, nil
}

func (k *Kernel) link(ctx context.Context, name string, index int) (l plan.Link, err error) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return l, err
	}
	if err := unix.IoctlIfreq(k.ioctl, unix.SIOCGIFFLAGS, req); err != nil {
		if errors.Is(err, unix.ENODEV) {
			return l, nil // it has just gone
		}
		return l, fmt.Errorf("read its flags: %w", err)
	}
	l.Up = req.Uint16()&unix.IFF_UP != 0
	if l.Addrs, err = k.foreignAddrs(ctx, index); err != nil {
		return l, fmt.Errorf("list its addresses: %w", err)
	}
	for _, at := range []string{"all", name} {
		v, err := k.readSysctl("net/ipv4/conf/" + at + "/rp_filter")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return l, err
		}
		if n, err := strconv.ParseUint(v, 10, 8); err == nil {
			l.RPFilter = max(l.RPFilter, uint8(n))
		}
	}
	if l.Router4, err = k.router(ctx, anywhere4, index); err != nil {
		return l, fmt.Errorf("find its IPv4 default route: %w", err)
	}
	if l.Router6, err = k.router(ctx, anywhere6, index); err != nil {
		return l, fmt.Errorf("find its IPv6 default route: %w", err)
	}
	return l, nil
}

// foreignAddrs are an interface's addresses that do not carry our protocol.
func (k *Kernel) foreignAddrs(ctx context.Context, index int) ([]netip.Prefix, error) {
	var got []netip.Prefix
	fixed := make([]byte, addrLength)
	binary.NativeEndian.PutUint32(fixed[4:], uint32(index))
	err := k.rt.dump(ctx, newMessage(unix.RTM_GETADDR, 0, fixed), func() { got = nil }, func(typ uint16, b []byte) {
		a, ok := parseAddr(b)
		if ok && typ == unix.RTM_NEWADDR && a.index == index && a.protocol != marks.RouteProtocol {
			got = append(got, a.prefix)
		}
	})
	return got, err
}

// router is the next hop of main's best default route over one interface.
func (k *Kernel) router(ctx context.Context, dst netip.Addr, index int) (plan.Router, error) {
	fixed := make([]byte, routeLength)
	fixed[0], fixed[1] = family(dst), byte(dst.BitLen())
	copy(fixed[8:], host32(fibMatch))
	var found route
	err := k.rt.get(newMessage(unix.RTM_GETROUTE, 0, fixed).
		attr(unix.RTA_DST, dst.AsSlice()).
		u32(unix.RTA_OIF, uint32(index)), func(typ uint16, b []byte) {
		if x, ok := parseRoute(b); ok && typ == unix.RTM_NEWROUTE {
			found = x
		}
	})
	if err != nil {
		return plan.Router{}, nil // no route over it
	}
	if isDefault(found) && found.index == index && !found.several {
		return plan.Router{Found: true, Via: found.Via}, nil
	}
	// Of several next hops, or hidden by a route to more than that.
	routes, err := k.defaultRoutes(ctx, family(dst), unix.RTPROT_UNSPEC)
	if err != nil {
		return plan.Router{}, err
	}
	best := plan.Router{}
	metric := uint32(0)
	for _, x := range routes {
		if x.index == index && (!best.Found || x.Metric < metric) {
			best, metric = plan.Router{Found: true, Via: x.Via}, x.Metric
		}
	}
	return best, nil
}
