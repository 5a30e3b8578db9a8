package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/plan"
	"github.com/slash32/slash32/pkg/state"
)

const (
	packets   = 10_000 // of one flow, per measurement
	flows     = 5_000  // one packet each
	firstPort = 10_000
	sourceAt  = 14 + 20 // of the source port in an IPv4 frame without options
)

// bareHost has the bridge, the addresses and the route of one VM of ours, in main,
// and no rule and no table of nftables: what the kernel takes for forwarding alone.
func bareHost(ctx context.Context, vm int) (*host, error) {
	h, err := newHost(ctx, 1)
	if err != nil {
		return nil, err
	}
	vms, c := networkVMs(vm, 1)
	network := c.Networks[config.DefaultNetwork]
	network.Table = config.TableMain
	c.Networks[config.DefaultNetwork], vms[0].NICs[0].Network = network, network
	want := plan.Build(vms, c, h.facts).State
	want.Skeleton, want.Elems = "", map[state.Elem]struct{}{}
	if err := h.as(ctx, want); err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

// classicHost has what scripts make: for each VM a policy rule, a rule of the
// firewall in each family and a masquerade rule. Packets come from the VM in the
// middle.
func classicHost(ctx context.Context, n int) (*host, error) {
	h, err := bareHost(ctx, n/2)
	if err != nil {
		return nil, err
	}
	var rules, rules6, nft4, nft6, masq strings.Builder
	for i := range n {
		for _, b := range []*strings.Builder{&rules, &rules6} {
			fmt.Fprintf(b, "rule add iif %s lookup %d pref %d\n", nthBridge(i), ownTable, 1000+i)
		}
		fmt.Fprintf(&nft4, "iifname %s ip saddr %s accept\n", nthBridge(i), nthAddr4(i))
		fmt.Fprintf(&nft6, "iifname %s ip6 saddr %s accept\n", nthBridge(i), nthAddr6(i))
		fmt.Fprintf(&masq, "oifname %s ip saddr %s masquerade\n", wan, nthAddr4(i))
	}
	const forward = "chain forward { type filter hook forward priority 0; policy drop;\n"
	ruleset := "table ip classic {\n" + forward + nft4.String() + "}\nchain out { type nat hook postrouting priority 100;\n" + masq.String() +
		"}\n}\ntable ip6 classic {\n" + forward + nft6.String() + "}\n}\n"
	fmt.Fprintf(&rules, "route add default via 192.0.2.1 table %d\n", ownTable)
	fmt.Fprintf(&rules6, "route add default via 2001:db8:ffff::1 table %d\n", ownTable)
	for _, s := range [][]string{
		{rules.String(), "ip", "-4", "-batch", "-"},
		{rules6.String(), "ip", "-6", "-batch", "-"},
		{ruleset, "nft", "-f", "-"},
	} {
		if err := sh(ctx, h.space, s[0], s[1], s[2:]...); err != nil {
			h.close()
			return nil, err
		}
	}
	return h, nil
}

// road is one way to forward, and where its figures stand in the table.
type road struct {
	*host
	who     string
	vm      int  // whose packets
	tracked bool // it translates new flows
}

// forwarding measures one packet from the guest's end to the far end of the uplink,
// without what the generator itself takes.
func forwarding(k *book, rounds int, roads []road) error {
	gw := mac.MustParse(marks.GatewayMAC)
	away4, away6 := netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8:9::9")
	for range rounds {
		for _, r := range roads {
			frame4 := udpFrame(gw, nthMAC(r.vm), nthAddr4(r.vm), away4)
			frame6 := udpFrame(gw, nthMAC(r.vm), nthAddr6(r.vm), away6)
			for _, f := range []struct {
				what  string
				frame []byte
			}{{rowForward4, frame4}, {rowForward6, frame6}} {
				own, err := r.burst(r.idle, f.frame, packets, 0, false)
				if err != nil {
					return err
				}
				all, err := r.burst(r.guest, f.frame, packets, 0, true)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", f.what, r.who, err)
				}
				k.add(f.what, "µs", r.who, all-own)
				k.add(rowGenerator, "µs", r.who, own)
			}
			if !r.tracked {
				continue
			}
			if err := r.forget(); err != nil {
				return err
			}
			own, err := r.burst(r.idle, frame4, flows, 1, false)
			if err != nil {
				return err
			}
			all, err := r.burst(r.guest, frame4, flows, 1, true)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", rowNewFlow, r.who, err)
			}
			k.add(rowNewFlow, "µs", r.who, all-own)
			if err := r.forget(); err != nil {
				return err
			}
		}
	}
	return nil
}

// forget empties the table of tracked connections.
func (h *host) forget() error {
	return within(h.space, func() error {
		if err := netlink.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
			return fmt.Errorf("forget connections: %w", err)
		}
		return nil
	})
}

// burst sends n frames and returns the time of each in µs; a write returns when the
// packet has been through. With step, each is a flow of its own. When they are to
// arrive, all must.
func (h *host) burst(fd int, frame []byte, n, step int, arrive bool) (float64, error) {
	before, err := h.arrived()
	if err != nil {
		return 0, err
	}
	runtime.GC()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	var spent time.Duration
	err = elsewhere(func() error {
		if err := realtime(); err != nil {
			return err
		}
		if step == 0 { // caches, and the entry of the connection
			for range n / 20 {
				if _, err := unix.Write(fd, frame); err != nil {
					return fmt.Errorf("send: %w", err)
				}
			}
		}
		begin := time.Now()
		for i := range n {
			if step != 0 {
				binary.BigEndian.PutUint16(frame[sourceAt:], uint16(firstPort+i*step))
			}
			if _, err := unix.Write(fd, frame); err != nil {
				return fmt.Errorf("send: %w", err)
			}
		}
		spent = time.Since(begin)
		return nil
	})
	if err != nil {
		return 0, err
	}
	after, err := h.arrived()
	if err != nil {
		return 0, err
	}
	if got := after - before; arrive && got < uint64(n) {
		return 0, fmt.Errorf("of %d packets %d arrived", n, got)
	}
	return float64(spent.Nanoseconds()) / 1e3 / float64(n), nil
}

// realtime keeps the calling thread on one core, before all that is not realtime.
func realtime() error {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return fmt.Errorf("read the cores: %w", err)
	}
	core := 0
	for i := range runtime.NumCPU() {
		if set.IsSet(i) {
			core = i
		}
	}
	set.Zero()
	set.Set(core)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("keep to core %d: %w", core, err)
	}
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 10}
	if err := unix.SchedSetAttr(0, &attr, 0); err != nil {
		return fmt.Errorf("get realtime priority: %w", err)
	}
	return nil
}

// udpFrame is a UDP packet of 64 bytes of data.
func udpFrame(to, from mac.Addr, src, dst netip.Addr) []byte {
	udp := binary.BigEndian.AppendUint16(nil, firstPort)
	udp = binary.BigEndian.AppendUint16(udp, 9)
	udp = binary.BigEndian.AppendUint16(udp, 8+64)
	udp = append(udp, make([]byte, 2+64)...)
	f := append(append([]byte{}, to[:]...), from[:]...)
	if src.Is4() {
		h := make([]byte, 20)
		h[0], h[8], h[9] = 0x45, 64, unix.IPPROTO_UDP
		binary.BigEndian.PutUint16(h[2:], uint16(len(h)+len(udp)))
		copy(h[12:], src.AsSlice())
		copy(h[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(h[10:], checksum(h))
		return append(append(append(f, 8, 0), h...), udp...) // without a checksum of UDP's
	}
	h := make([]byte, 40)
	h[0], h[6], h[7] = 0x60, unix.IPPROTO_UDP, 64
	binary.BigEndian.PutUint16(h[4:], uint16(len(udp)))
	copy(h[8:], src.AsSlice())
	copy(h[24:], dst.AsSlice())
	pseudo := append(append([]byte{}, h[8:40]...), 0, 0, h[4], h[5], 0, 0, 0, unix.IPPROTO_UDP)
	binary.BigEndian.PutUint16(udp[6:], checksum(append(pseudo, udp...)))
	return append(append(append(f, 0x86, 0xdd), h...), udp...)
}

// checksum is that of the Internet (RFC 1071), of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// objectCounts counts, in the whole namespace, what a packet may have to walk
// through.
func objectCounts(space netns.NsHandle) (ipRules, nftRules, chains, base int, err error) {
	h, err := netlink.NewHandleAt(space)
	if err != nil {
		return 0, 0, 0, 0, fmt.Errorf("open netlink socket: %w", err)
	}
	defer h.Close()
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := h.RuleList(family)
		if err != nil {
			return 0, 0, 0, 0, fmt.Errorf("list policy rules: %w", err)
		}
		ipRules += len(rules)
	}
	conn, err := nftables.New(nftables.WithNetNSFd(int(space)))
	if err != nil {
		return 0, 0, 0, 0, fmt.Errorf("open nftables socket: %w", err)
	}
	list, err := conn.ListChains()
	if err != nil {
		return 0, 0, 0, 0, fmt.Errorf("list chains: %w", err)
	}
	for _, c := range list {
		if c.Hooknum != nil {
			base++
		}
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return 0, 0, 0, 0, fmt.Errorf("list rules of chain %s: %w", c.Name, err)
		}
		nftRules += len(rules)
	}
	return ipRules, nftRules, len(list), base, nil
}
