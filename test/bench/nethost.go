package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/sirupsen/logrus"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/kernel"
	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/plan"
	"github.com/slash32/slash32/pkg/state"
)

const (
	ownTable = 100 // the network's routing table: its VMs need marks and rules
	wan      = "wan0"
	tap      = "tap0"

	// freeing is more than the kernel takes to free an element.
	freeing = 2 * time.Microsecond
)

// host is one host under test, in a network namespace of its own: an uplink whose
// far end counts what arrives, and one guest's port in the bridge of the first VM.
type host struct {
	vms    int
	space  netns.NsHandle
	far    netns.NsHandle  // the far ends of the uplink and of the guest's port
	beyond *netlink.Handle // there
	k      *kernel.Kernel
	facts  plan.Facts
	want   state.State
	raw    *rawPeer
	guest  int // packet socket at the guest's end
	idle   int // packet socket of a pair whose other end leads nowhere
}

// elsewhere runs f on a thread of its own that may change its namespace; the
// thread dies with it.
func elsewhere(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

func newSpace() (space netns.NsHandle, err error) {
	err = elsewhere(func() error {
		space, err = netns.New()
		return err
	})
	if err != nil {
		return netns.None(), fmt.Errorf("make a network namespace: %w", err)
	}
	return space, nil
}

// within runs f in a namespace.
func within(space netns.NsHandle, f func() error) error {
	return elsewhere(func() error {
		if err := netns.Set(space); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// sh runs a program with standard input in a namespace.
func sh(ctx context.Context, space netns.NsHandle, stdin, name string, args ...string) error {
	return within(space, func() error {
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Stdin = strings.NewReader(stdin)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
		}
		return nil
	})
}

// newHost makes the namespaces and reads the facts.
func newHost(ctx context.Context, vms int) (*host, error) {
	h := &host{vms: vms, space: netns.None(), far: netns.None(), guest: -1, idle: -1}
	if err := h.open(ctx); err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

func (h *host) open(ctx context.Context) (err error) {
	if h.space, err = newSpace(); err != nil {
		return err
	}
	if h.far, err = newSpace(); err != nil {
		return err
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	err = within(h.space, func() (err error) {
		h.k, err = kernel.New(log)
		return err
	})
	if err != nil {
		return err
	}
	if h.beyond, err = netlink.NewHandleAt(h.far); err != nil {
		return fmt.Errorf("open netlink socket at the far end: %w", err)
	}
	here, err := netlink.NewHandleAt(h.space)
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	defer here.Close()
	for _, name := range []string{wan, tap, "idle0"} {
		l := netlink.NewVeth(netlink.NewLinkAttrs())
		l.Name, l.PeerName, l.PeerNamespace = name, name, netlink.NsFd(h.far)
		if err := here.LinkAdd(l); err != nil {
			return fmt.Errorf("make %s: %w", name, err)
		}
	}
	// Nothing beyond answers or asks: what arrives there is counted and dropped.
	quiet := "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6\n"
	for _, name := range []string{wan, tap, "idle0"} {
		quiet += "ip link set " + name + " up\n"
	}
	if err := sh(ctx, h.far, quiet, "sh", "-e"); err != nil {
		return err
	}
	lines := `link set lo up
link set wan0 up
link set tap0 up
link set idle0 up
address add 192.0.2.10/24 dev wan0
address add 2001:db8:ffff::10/64 dev wan0 nodad
route add default via 192.0.2.1
route add default via 2001:db8:ffff::1
neigh add 192.0.2.1 lladdr 02:00:00:00:00:99 dev wan0 nud permanent
neigh add 2001:db8:ffff::1 lladdr 02:00:00:00:00:99 dev wan0 nud permanent
`
	if err := sh(ctx, h.space, lines, "ip", "-batch", "-"); err != nil {
		return err
	}
	err = within(h.far, func() (err error) {
		if h.guest, err = sender(tap); err == nil {
			h.idle, err = sender("idle0")
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("open the guest's packet socket: %w", err)
	}
	if h.facts, err = h.k.Facts(ctx); err != nil {
		return fmt.Errorf("read the facts: %w", err)
	}
	return nil
}

// sender opens a packet socket that only sends.
func sender(name string) (int, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	return fd, unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index})
}

func (h *host) close() {
	for _, fd := range []int{h.guest, h.idle} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	if h.raw != nil {
		h.raw.close()
	}
	if h.beyond != nil {
		h.beyond.Close()
	}
	if h.k != nil {
		h.k.Close()
	}
	for _, s := range []netns.NsHandle{h.far, h.space} {
		if s.IsOpen() {
			_ = s.Close()
		}
	}
}

// attach puts the guest's port into a bridge and waits until that has a carrier.
func (h *host) attach(ctx context.Context, bridge string) error {
	if err := sh(ctx, h.space, "", "ip", "link", "set", tap, "master", bridge); err != nil {
		return err
	}
	here, err := netlink.NewHandleAt(h.space)
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	defer here.Close()
	deadline := time.Now().Add(20 * time.Second)
	for _, name := range []string{bridge, wan} {
		for {
			l, err := here.LinkByName(name)
			if err != nil {
				return fmt.Errorf("look at %s: %w", name, err)
			}
			if l.Attrs().OperState == netlink.OperUp {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("wait for %s: it is %s", name, l.Attrs().OperState)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return nil
}

// arrived is how many packets have come out of the uplink.
func (h *host) arrived() (uint64, error) {
	l, err := h.beyond.LinkByName(wan)
	if err != nil {
		return 0, fmt.Errorf("count what left by the uplink: %w", err)
	}
	return l.Attrs().Statistics.RxPackets, nil
}

// openRaw opens the peer's sockets once the bridges are there.
func (h *host) openRaw() error {
	return within(h.space, func() (err error) {
		links, err := netlink.LinkList()
		if err != nil {
			return fmt.Errorf("list links: %w", err)
		}
		index := map[string]uint32{}
		for _, l := range links {
			index[l.Attrs().Name] = uint32(l.Attrs().Index)
		}
		h.raw, err = newRawPeer(index)
		return err
	})
}

func (h *host) read(ctx context.Context) (state.State, error) {
	return h.k.Read(ctx, state.Scope{Sysctls: h.want.HostSysctls()})
}

// as makes the kernel as wanted and checks that it is.
func (h *host) as(ctx context.Context, want state.State) error {
	h.want = want
	have, err := h.read(ctx)
	if err != nil {
		return err
	}
	if _, err := h.k.Apply(ctx, state.Diff(have, want)); err != nil {
		return err
	}
	return h.check(ctx)
}

// check compares the kernel with what is wanted.
func (h *host) check(ctx context.Context) error {
	have, err := h.read(ctx)
	if err != nil {
		return err
	}
	if left := state.Diff(have, h.want); len(left) > 0 {
		return fmt.Errorf("with %d VMs the kernel differs from the plan in %d objects: %s", h.vms, len(left), left[0])
	}
	return nil
}

// clear removes objects, and waits for the kernel to have freed their memory, which
// it does later.
func (h *host) clear(o objects) error {
	if err := h.raw.remove(o); err != nil {
		return err
	}
	time.Sleep(time.Duration(len(o.elems)) * freeing)
	return nil
}

func nthBridge(i int) string    { return fmt.Sprintf("s32-vm%d", i) }
func nthMAC(i int) mac.Addr     { return mac.Addr{0x52, 0x54, 0, 0xab, byte(i >> 8), byte(i)} }
func nthAddr4(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}) }
func nthAddr6(i int) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 14: byte(i >> 8), 15: byte(i)})
}

// networkVMs makes VMs with an address of each family, in a network with a table
// of its own.
func networkVMs(first, n int) ([]intent.VM, config.Config) {
	c := config.Default()
	network := c.Networks[config.DefaultNetwork]
	network.Table = ownTable
	c.Networks[config.DefaultNetwork] = network
	vms := make([]intent.VM, n)
	for j := range vms {
		i := first + j
		vms[j] = intent.VM{
			UUID: uuid.NewSHA1(uuid.Nil, []byte{byte(i >> 8), byte(i)}),
			Name: fmt.Sprintf("vm%d", i),
			NICs: []intent.NIC{{
				MAC: nthMAC(i), Bridge: nthBridge(i), Network: network, NAT: network.NAT,
				Addrs4: []netip.Addr{nthAddr4(i)}, Addrs6: []netip.Addr{nthAddr6(i)},
			}},
		}
	}
	return vms, c
}

// desired plans VMs. Of more than so many bridges the rest are not made: their
// routes and neighbours are put on those that are, their elements stay as they are.
func desired(first, n, bridges int, f plan.Facts) state.State {
	vms, c := networkVMs(first, n)
	s := plan.Build(vms, c, f).State
	if first+n <= bridges {
		return s
	}
	there := make(map[string]string, n) // a bridge, and which stands in for it
	for i := first; i < first+n; i++ {
		there[nthBridge(i)] = nthBridge(i % bridges)
	}
	extra := func(name string) bool { return there[name] != "" && there[name] != name }
	maps.DeleteFunc(s.Links, func(name string, _ state.Link) bool { return extra(name) })
	maps.DeleteFunc(s.Sysctls, func(path, _ string) bool { return extra(state.SysctlLink(path)) })
	maps.DeleteFunc(s.Addrs, func(a state.Addr, _ struct{}) bool { return extra(a.Link) })
	routes, neighs := s.Routes, s.Neighs
	s.Routes, s.Neighs = map[state.Route]struct{}{}, map[state.NeighKey]mac.Addr{}
	for r := range routes {
		if extra(r.Link) {
			r.Link = there[r.Link]
		}
		s.Routes[r] = struct{}{}
	}
	for k, m := range neighs {
		if extra(k.Link) {
			k.Link = there[k.Link]
		}
		s.Neighs[k] = m
	}
	return s
}

// minus is what s has of routes, neighbours and elements and other has not.
func minus(s, other state.State) state.State {
	out := state.New()
	for r := range s.Routes {
		if _, ok := other.Routes[r]; !ok {
			out.Routes[r] = struct{}{}
		}
	}
	for k, m := range s.Neighs {
		if _, ok := other.Neighs[k]; !ok {
			out.Neighs[k] = m
		}
	}
	for e := range s.Elems {
		if _, ok := other.Elems[e]; !ok {
			out.Elems[e] = struct{}{}
		}
	}
	return out
}

// plus is s with the routes, neighbours and elements of other.
func plus(s, other state.State) state.State {
	out := s.Clone()
	maps.Copy(out.Routes, other.Routes)
	maps.Copy(out.Neighs, other.Neighs)
	maps.Copy(out.Elems, other.Elems)
	return out
}
