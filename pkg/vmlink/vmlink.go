// Package vmlink is one VM's responder process: it opens the packet sockets of
// the VM's bridges and the control socket, gives every privilege up, and serves
// until it is told to stop.
package vmlink

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/control"
	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/rawsock"
	"github.com/slash32/slash32/pkg/responder"
	"github.com/slash32/slash32/pkg/version"
)

// Options say which VM to serve and how.
type Options struct {
	Dir    string           // the VM's directory, which holds binding.json
	User   string           // the account to become; nobody's ids (65534) if there is none of that name
	Limits responder.Limits // of each NIC
	Notify string           // systemd's notification socket ($NOTIFY_SOCKET), "" for none
	Log    logrus.FieldLogger
}

// errRestart ends the run without an error: the binding has other NICs now,
// their sockets take privileges that are gone, so the supervisor starts anew.
var errRestart = errors.New("the set of NICs changed")

// Run serves the VM until ctx ends or a reload finds another set of NICs; then
// it returns nil. It must be called as root (or with CAP_NET_RAW) and leaves the
// whole process without privileges, for good.
func Run(ctx context.Context, o Options) error {
	v, err := open(ctx, o)
	if err != nil {
		return err
	}
	defer v.close()
	if err := dropPrivileges(o.User, o.Log); err != nil {
		return fmt.Errorf("drop privileges: %w", err)
	}
	if err := v.notify.ready(); err != nil {
		// systemd will end the unit when it has waited long enough; the guest
		// can be served until then.
		o.Log.WithError(err).Warn("cannot tell systemd that the responder is ready")
	}
	return v.serve(ctx)
}

// nicKey is what the sockets of a NIC depend on.
type nicKey struct {
	bridge string
	guest  mac.Addr
}

// nic is one link that is served.
type nic struct {
	key    nicKey
	server *responder.Server
}

// vm is the running responder of one VM.
type vm struct {
	log     logrus.FieldLogger
	dir     directory
	uuid    string
	since   time.Time
	nics    []nic
	control *controlServer
	notify  notifier

	mu   sync.Mutex
	hash string // of the binding in use
}

// open does all that takes privileges: sockets first, so that no frame of the
// guest is lost from the moment on at which the control socket can be reached.
func open(ctx context.Context, o Options) (_ *vm, err error) {
	v := &vm{log: o.Log, dir: directory{fd: -1}, since: time.Now()}
	defer func() {
		if err != nil {
			v.close()
		}
	}()
	if v.dir, err = openDirectory(o.Dir); err != nil {
		return nil, err
	}
	binding, hash, err := v.dir.binding()
	if err != nil {
		return nil, err
	}
	links, err := compile(binding)
	if err != nil {
		return nil, err
	}
	if err := v.dir.lock(ctx); err != nil {
		return nil, err
	}
	v.uuid, v.hash = binding.UUID, hash
	for i, n := range binding.NICs {
		conn, err := rawsock.Open(n.Bridge, n.GuestMAC)
		if err != nil {
			return nil, err
		}
		log := o.Log.WithFields(logrus.Fields{"vm": binding.Name, "bridge": n.Bridge})
		v.nics = append(v.nics, nic{
			key:    nicKey{n.Bridge, n.GuestMAC},
			server: responder.NewServer(conn, links[i], o.Limits, log),
		})
	}
	if v.control, err = listenControl(o.Dir, v.answer); err != nil {
		return nil, err
	}
	if v.notify, err = dialNotify(o.Notify); err != nil {
		return nil, err
	}
	return v, nil
}

// compile checks that the NICs can be told apart and makes their links.
func compile(b responder.Binding) ([]*responder.Link, error) {
	links := make([]*responder.Link, len(b.NICs))
	for i, n := range b.NICs {
		for _, other := range b.NICs[:i] {
			if n.Bridge == other.Bridge {
				return nil, fmt.Errorf("binding of %s: bridge %s is given twice", b.Name, n.Bridge)
			}
		}
		link, err := responder.Compile(n)
		if err != nil {
			return nil, fmt.Errorf("binding of %s: NIC %s on %s: %w", b.Name, n.GuestMAC, n.Bridge, err)
		}
		links[i] = link
	}
	return links, nil
}

func (v *vm) close() {
	for _, n := range v.nics {
		_ = n.server.Close()
	}
	if v.control != nil {
		v.control.close()
	}
	v.notify.close()
	v.dir.close()
}

// serve runs until ctx ends (nil), the NICs change (nil) or one link breaks.
func (v *vm) serve(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return v.control.serve(ctx) })
	for _, n := range v.nics {
		g.Go(func() error {
			err := n.server.Run(ctx)
			if errors.Is(err, rawsock.ErrGone) {
				return fmt.Errorf("bridge %s was removed: nothing left to serve on it: %w", n.key.bridge, err)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil && !errors.Is(err, errRestart) {
		return err
	}
	return nil
}

// answer is the reply to one line on the control socket. errRestart comes with
// a reply that is still to be sent.
func (v *vm) answer(line string) (any, error) {
	switch line {
	case "status":
		return v.status(), nil
	case "reload":
		err := v.reload()
		if err != nil && !errors.Is(err, errRestart) {
			v.log.WithError(err).Warn("the binding was not taken over: the VM keeps its last good one")
			return failure{Error: err.Error()}, nil
		}
		s := v.status()
		s.Up = err == nil
		return s, err
	}
	return failure{Error: fmt.Sprintf("unknown request %q: known are status and reload", line)}, nil
}

// reload takes the binding over as a whole or not at all.
func (v *vm) reload() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	binding, hash, err := v.dir.binding()
	if err != nil {
		return err
	}
	if binding.UUID != v.uuid {
		return fmt.Errorf("the binding is of VM %s, this responder serves %s", binding.UUID, v.uuid)
	}
	links, err := compile(binding)
	if err != nil {
		return err
	}
	servers := make([]*responder.Server, len(links))
	for i, n := range binding.NICs {
		for _, have := range v.nics {
			if have.key == (nicKey{n.Bridge, n.GuestMAC}) {
				servers[i] = have.server
			}
		}
		if servers[i] == nil {
			return errRestart
		}
	}
	if len(links) != len(v.nics) {
		return errRestart
	}
	if hash == v.hash {
		return nil
	}
	for i, s := range servers {
		s.Swap(links[i])
	}
	v.hash = hash
	return nil
}

func (v *vm) status() control.Responder {
	v.mu.Lock()
	hash := v.hash
	v.mu.Unlock()
	r := control.Responder{Up: true, PID: os.Getpid(), Version: version.Version, Since: v.since, Binding: hash}
	for _, n := range v.nics {
		c := n.server.Counters()
		counts := make(map[string]uint64)
		for verdict, count := range c.Verdicts {
			if count > 0 {
				counts[responder.Verdict(verdict).String()] = count
			}
		}
		for name, count := range map[string]uint64{"rate_limited": c.RateLimited, "send_failed": c.SendFailed, "panic": c.Panics} {
			if count > 0 {
				counts[name] = count
			}
		}
		nic := control.ResponderNIC{Bridge: n.key.bridge, Verdicts: counts}
		for _, e := range n.server.Last(nil) {
			nic.Last = append(nic.Last, control.Exchange{At: e.At, Verdict: e.Verdict.String()})
		}
		r.NICs = append(r.NICs, nic)
	}
	return r
}

// directory is the VM's directory. Files are read relative to it, so that they
// can be reached after the change of user whatever lies above.
type directory struct {
	path string
	fd   int
}

func openDirectory(path string) (directory, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return directory{fd: -1}, fmt.Errorf("open the VM's directory %s: %w", path, err)
	}
	return directory{path: path, fd: fd}, nil
}

func (d *directory) close() {
	if d.fd >= 0 {
		_ = unix.Close(d.fd)
		d.fd = -1
	}
}

// lockPatience is how long the predecessor may take to die.
const lockPatience = 2 * time.Second

// lock makes sure that the VM has one responder: two would both answer. The
// kernel releases it when the process ends, however it ends.
func (d *directory) lock(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	for {
		err := unix.Flock(d.fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || (!errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR)) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("another responder serves %s", d.path)
		case <-time.After(5 * time.Millisecond):
		}
	}
}
