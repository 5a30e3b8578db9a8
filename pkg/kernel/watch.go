package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/marks"
)

// settle is how long a burst of changes is collected before it wakes anybody.
const settle = 50 * time.Millisecond

// Watch calls wake when the kernel announces a change to what is ours or to
// what planning depends on, until ctx ends; then it returns nil. What happens
// within 50 ms wakes once, with all reasons. Our own writes wake as
// well. It wakes, too, as soon as it watches, and when the kernel had more to say
// than the socket holds: whoever reads all when woken misses nothing.
func (k *Kernel) Watch(ctx context.Context, wake func(reason string)) error {
	for {
		w, err := k.subscribe()
		if err != nil {
			return err
		}
		wake("watching")
		err = w.run(ctx, wake)
		w.close()
		if ctx.Err() != nil {
			return nil
		}
		if !errors.Is(err, unix.ENOBUFS) {
			return fmt.Errorf("watch the kernel: %w", err)
		}
		k.log.Warn("the kernel announced more changes than the socket holds; everything is read again")
	}
}

type watcher struct {
	rt, nft *conn
	foreign func() // is called when chains or rules of others change
	writers *writers
	touched bool                 // our table has been changed in the transaction under way
	stop    int                  // an eventfd that ends the wait
	ours    func(index int) bool // whether an interface is a bridge of ours
	hairpin func(name string) bool
}

func (k *Kernel) subscribe() (*watcher, error) {
	w := &watcher{
		stop: -1, foreign: k.Foreign, writers: &k.writers,
		ours: func(index int) bool { return k.gatewayMAC(k.name(index)) },
		hairpin: func(name string) (is bool) {
			if known := k.hairpins.Load(); known != nil {
				_, is = (*known)[name]
			}
			return is
		},
	}
	err := k.inside(func() error {
		var err error
		if w.rt, err = subscribe(unix.NETLINK_ROUTE,
			unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH,
			unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
			unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
			unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
			unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF,
		); err != nil {
			return err
		}
		if w.nft, err = subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES); err != nil {
			return err
		}
		if w.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
			return fmt.Errorf("make eventfd: %w", err)
		}
		return nil
	})
	if err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

func subscribe(proto int, groups ...int) (*conn, error) {
	c, err := dial(proto)
	if err != nil {
		return nil, err
	}
	for _, g := range groups {
		if err := unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
			_ = c.close()
			return nil, fmt.Errorf("subscribe to netlink group %d: %w", g, err)
		}
	}
	if err := unix.SetNonblock(c.fd, true); err != nil {
		_ = c.close()
		return nil, fmt.Errorf("set netlink socket non-blocking: %w", err)
	}
	return c, nil
}

func (w *watcher) close() {
	for _, c := range []*conn{w.rt, w.nft} {
		if c != nil {
			_ = c.close()
		}
	}
	if w.stop >= 0 {
		_ = unix.Close(w.stop)
	}
}

func (w *watcher) run(ctx context.Context, wake func(reason string)) error {
	// The eventfd may be written to until stopped has returned.
	stopped := make(chan struct{})
	unhook := context.AfterFunc(ctx, func() {
		defer close(stopped)
		_, _ = unix.Write(w.stop, binary.NativeEndian.AppendUint64(nil, 1))
	})
	defer func() {
		if !unhook() {
			<-stopped
		}
	}()
	for {
		if err := w.wait(-1); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		var reasons []string
		for until := time.Now().Add(settle); ; {
			if err := w.drain(&reasons); err != nil {
				return err
			}
			left := time.Until(until)
			if left <= 0 || ctx.Err() != nil || len(reasons) == 0 {
				break
			}
			if err := w.wait(left); err != nil {
				return err
			}
		}
		if len(reasons) > 0 {
			slices.Sort(reasons)
			wake(strings.Join(slices.Compact(reasons), ", "))
		}
	}
}

// wait returns when there is something to read, ctx has ended or the time is
// up; a negative time has no end.
func (w *watcher) wait(d time.Duration) error {
	fds := []unix.PollFd{
		{Fd: int32(w.rt.fd), Events: unix.POLLIN},
		{Fd: int32(w.nft.fd), Events: unix.POLLIN},
		{Fd: int32(w.stop), Events: unix.POLLIN},
	}
	timeout := -1
	if d >= 0 {
		timeout = int(d.Milliseconds()) + 1
	}
	if _, err := unix.Poll(fds, timeout); err != nil && err != unix.EINTR {
		return fmt.Errorf("wait for netlink: %w", err)
	}
	return nil
}

func (w *watcher) drain(reasons *[]string) error {
	for _, x := range []struct {
		c      *conn
		reason func(typ uint16, data []byte) string
	}{{w.rt, w.routeReason}, {w.nft, w.nftReason}} {
		for {
			err := x.c.receive(func(typ, _ uint16, _ uint32, data []byte) {
				if r := x.reason(typ, data); r != "" && !slices.Contains(*reasons, r) {
					*reasons = append(*reasons, r)
				}
			})
			if errors.Is(err, unix.EAGAIN) {
				break
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// routeReason says why a message is worth a look, "" when it is not.
func (w *watcher) routeReason(typ uint16, b []byte) string {
	switch typ {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		l := parseLink(b)
		switch {
		case len(b) < nativeIfinfoLength:
			return ""
		case b[0] == unix.AF_BRIDGE && typ == unix.RTM_DELLINK:
			return "port" // has left its bridge
		case l.master != 0 && !l.hairpin && w.hairpin(l.name):
			return "port" // its options have changed
		case b[0] == unix.AF_BRIDGE:
			return "" // a port's state
		case l.ours() || l.group == marks.LinkGroup:
			return "link"
		case typ == unix.RTM_DELLINK || hostU32(b[12:])&unix.IFF_UP != 0:
			return "interface" // perhaps an uplink
		}
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return "address"
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		// One that goes is no longer permanent by then. What the kernel learns
		// elsewhere, and link-local addresses of guests, are noise.
		if n, ok := parseNeigh(b); ok && !n.ip.IsLinkLocalUnicast() && !n.ip.IsMulticast() && w.ours(n.index) {
			return "neighbour"
		}
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		x, ok := parseRoute(b)
		if ok && (x.protocol == marks.RouteProtocol || x.Dst.Bits() == 0 && x.Table == unix.RT_TABLE_MAIN) {
			return "route"
		}
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		return "rule"
	case unix.RTM_NEWNETCONF: // forwarding and rp_filter, of which the kernel tells
		return "setting"
	}
	return ""
}

// nftReason looks at what happens to our tables. Of other programs' chains and rules it
// tells foreign.
func (w *watcher) nftReason(typ uint16, b []byte) string {
	if typ>>8 != unix.NFNL_SUBSYS_NFTABLES || len(b) < 4 {
		return ""
	}
	if typ&0xff == unix.NFT_MSG_NEWGEN { // the last message of each transaction
		if w.touched {
			w.writers.note(b)
		}
		w.touched = false
		return ""
	}
	if table, _ := names(b); slices.Contains(families[:], b[0]) && table == marks.NftTable {
		w.touched = true
		return "table"
	}
	switch typ & 0xff {
	case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE, unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
		if w.foreign != nil && familyName(b[0]) != "" {
			w.foreign()
		}
	}
	return ""
}
