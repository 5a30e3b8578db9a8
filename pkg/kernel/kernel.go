// Package kernel reads and writes the kernel objects of slash32: bridges,
// their settings, addresses, neighbours, routes and rules through rtnetlink,
// the tables slash32 through nftables' netlink, tracked connections. It deletes
// nothing that does not carry one of the marks in package marks.
//
// The requests are made here rather than by a library, for two reasons: many of
// them go into one send (a third of the time for routes), and the raw
// expressions of the table's rules can be compared, so that a rule that somebody
// took out is noticed.
package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"unsafe"

	"github.com/sirupsen/logrus"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/marks"
)

// Kernel is the kernel's network of one namespace: the one that the calling
// thread was in at New. It is safe for concurrent use, but two that Apply at the
// same time see each other's half-done work: callers hold a lock around Read and
// Apply.
type Kernel struct {
	log       logrus.FieldLogger
	namespace netns.NsHandle
	rt        *conn
	nft       *conn
	conntrack *netlink.Handle
	ioctl     int // any socket: interface names and indexes without RTNL
	// sysctls are the open directories /proc/sys/net/ipv4 and ipv6: a path that is opened
	// from there stays in the namespace, whichever thread opens it.
	sysctls map[string]int
	// Foreign, when it is set before Watch, is called for each change to other
	// programs' chains and rules. It must not block.
	Foreign func()
	writers writers
	// hairpins are the taps in hairpin mode, as the last whole Read has them: Watch
	// tells when one no longer is.
	hairpins atomic.Pointer[map[string]struct{}]
}

// dirBridge has br_netfilter's settings. It is not kept open: the module may be loaded
// at any time.
const dirBridge = "net/bridge/"

// New opens the sockets. Reading needs no privilege, writing CAP_NET_ADMIN.
func New(log logrus.FieldLogger) (*Kernel, error) {
	k := &Kernel{log: log, namespace: netns.None(), ioctl: -1, sysctls: map[string]int{}}
	if err := k.open(); err != nil {
		k.Close()
		return nil, err
	}
	return k, nil
}

func (k *Kernel) open() error {
	var err error
	if k.namespace, err = netns.Get(); err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	if k.rt, err = dial(unix.NETLINK_ROUTE); err != nil {
		return err
	}
	if k.nft, err = dial(unix.NETLINK_NETFILTER); err != nil {
		return err
	}
	if k.conntrack, err = netlink.NewHandle(unix.NETLINK_NETFILTER); err != nil {
		return fmt.Errorf("open conntrack socket: %w", err)
	}
	if k.ioctl, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open socket for interface names: %w", err)
	}
	for _, dir := range []string{"net/ipv4/", "net/ipv6/"} {
		fd, err := unix.Open("/proc/sys/"+dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return fmt.Errorf("open /proc/sys/%s: %w", dir, err)
		}
		k.sysctls[dir] = fd
	}
	return nil
}

// Close closes the sockets.
func (k *Kernel) Close() {
	for _, c := range []*conn{k.rt, k.nft} {
		if c != nil {
			_ = c.close()
		}
	}
	if k.conntrack != nil {
		k.conntrack.Close()
	}
	if k.ioctl >= 0 {
		_ = unix.Close(k.ioctl)
	}
	for _, fd := range k.sysctls {
		_ = unix.Close(fd)
	}
	if k.namespace.IsOpen() {
		_ = k.namespace.Close()
	}
}

// inside runs f on a thread that is in the Kernel's namespace. In a program
// all of whose threads are there, which is every program but a test, it is a
// plain call and needs no privilege.
func (k *Kernel) inside(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here, err := netns.Get()
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer here.Close()
	if here.Equal(k.namespace) {
		return f()
	}
	if err := netns.Set(k.namespace); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	err = f()
	if back := netns.Set(here); back != nil {
		// This thread must never run anything else: it dies with its goroutine.
		runtime.LockOSThread()
		return errors.Join(err, fmt.Errorf("leave network namespace: %w", back))
	}
	return err
}

// openSysctl opens a path below /proc/sys in the Kernel's namespace.
func (k *Kernel) openSysctl(path string, flags int) (*os.File, error) {
	for dir, at := range k.sysctls {
		rest, ok := strings.CutPrefix(path, dir)
		if !ok {
			continue
		}
		if rest != filepath.Clean(rest) || !filepath.IsLocal(rest) {
			break
		}
		fd, err := unix.Openat(at, rest, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: "/proc/sys/" + path, Err: err}
		}
		return os.NewFile(uintptr(fd), "/proc/sys/"+path), nil
	}
	if strings.HasPrefix(path, dirBridge) && path == filepath.Clean(path) {
		var f *os.File
		err := k.inside(func() (err error) {
			f, err = os.OpenFile("/proc/sys/"+path, flags|unix.O_NOFOLLOW, 0)
			return err
		})
		return f, err
	}
	return nil, &os.PathError{Op: "open", Path: "/proc/sys/" + path, Err: os.ErrNotExist}
}

func (k *Kernel) readSysctl(path string) (string, error) {
	f, err := k.openSysctl(path, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := make([]byte, 256)
	n, err := f.Read(b)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return strings.TrimSpace(string(b[:n])), nil
}

func (k *Kernel) writeSysctl(path, value string) error {
	f, err := k.openSysctl(path, unix.O_WRONLY)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// index finds an interface's index by its name, 0 when there is none.
func (k *Kernel) index(name string) int {
	req, err := unix.NewIfreq(name)
	if err != nil || unix.IoctlIfreq(k.ioctl, unix.SIOCGIFINDEX, req) != nil {
		return 0
	}
	return int(req.Uint32())
}

// name finds an interface's name by its index, "" when there is none.
func (k *Kernel) name(index int) string {
	req, err := unix.NewIfreq("")
	if err != nil {
		return ""
	}
	req.SetUint32(uint32(index))
	if unix.IoctlIfreq(k.ioctl, unix.SIOCGIFNAME, req) != nil {
		return ""
	}
	return req.Name()
}

// gatewayMAC tells whether an interface has the MAC of all our bridges: a sign
// for what only saves work, got without RTNL.
func (k *Kernel) gatewayMAC(name string) bool {
	// struct ifreq: the name, then a sockaddr, of which the family comes first.
	var req struct {
		name   [unix.IFNAMSIZ]byte
		family uint16
		data   [22]byte
	}
	copy(req.name[:unix.IFNAMSIZ-1], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(k.ioctl), unix.SIOCGIFHWADDR, uintptr(unsafe.Pointer(&req)))
	return errno == 0 && mac.Addr(req.data[:6]) == mac.MustParse(marks.GatewayMAC)
}

// LinkName finds an interface's name by its index, "" when there is none.
func (k *Kernel) LinkName(index int) string { return k.name(index) }
