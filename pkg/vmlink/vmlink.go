// Package vmlink is one VM's responder process: it opens the packet sockets of
// the VM's bridges and the control socket, gives every privilege up, and serves
// until it is told to stop.
package vmlink

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/rawsock"
	"github.com/slash32/slash32/pkg/responder"
	"github.com/slash32/slash32/pkg/version"
)

// Options say which VM to serve and how.
type Options struct {
	Dir    string           // the VM's directory, which holds binding.json
	State  string           // the state directory, which may hold leases/UUID.json; "": none
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
	if err := dropPrivileges(o.User, v.keeper.descriptor(), o.Log); err != nil {
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
	dir     *directory
	uuid    string
	since   time.Time
	nics    []nic
	control *controlServer
	notify  notifier
	keeper  *keeper    // or nil
	relay   *relayConn // or nil: there is nothing for the agent
	keeping sync.Mutex // guards keeper

	// The control server's own.
	status statusWriter
	hash   [sha256.Size]byte // of the binding in use
}

// open does all that takes privileges: sockets first, so that no frame of the
// guest is lost from the moment on at which the control socket can be reached.
func open(ctx context.Context, o Options) (_ *vm, err error) {
	v := &vm{log: o.Log, since: time.Now()}
	defer func() {
		if err != nil {
			v.close()
		}
	}()
	if v.dir, err = openDirectory(o.Dir); err != nil {
		return nil, err
	}
	if err := v.dir.lock(ctx); err != nil {
		return nil, err
	}
	text, err := v.dir.binding()
	if err != nil {
		return nil, err
	}
	binding, links, err := v.compile(text)
	if err != nil {
		return nil, err
	}
	v.uuid, v.hash = binding.UUID, sha256.Sum256(text)
	v.keeper = openKeeper(leaseFile(o.State, o.Dir), binding.NICs, o.Log)
	if speaks(binding) {
		if v.relay, err = openRelay(o.Dir); err != nil {
			return nil, err
		}
	}
	for i, n := range binding.NICs {
		conn, err := rawsock.Open(n.Bridge, n.GuestMAC)
		if err != nil {
			return nil, err
		}
		log := o.Log.WithFields(logrus.Fields{"vm": binding.Name, "bridge": n.Bridge})
		server := responder.NewServer(conn, links[i], o.Limits, log)
		v.nics = append(v.nics, nic{key: nicKey{n.Bridge, n.GuestMAC}, server: server})
		if v.keeper != nil {
			server.Restore(v.keeper.kept(i), func(s responder.Kept) { v.keep(i, s) })
		}
		if v.relay != nil {
			server.Relay(v.relay)
		}
	}
	if v.status, err = newStatusWriter(os.Getpid(), version.Version, v.since, v.nics); err != nil {
		return nil, err
	}
	if v.control, err = listenControl(o.Dir, v.answer); err != nil {
		return nil, err
	}
	if v.notify, err = dialNotify(o.Notify); err != nil {
		return nil, err
	}
	return v, nil
}

// speaks tells whether the responder has something for the agent: the messages of a
// NIC that is relayed, or the news that a prefix was delegated.
func speaks(b responder.Binding) bool {
	for _, n := range b.NICs {
		if n.Relay != nil || n.Delegates() {
			return true
		}
	}
	return false
}

// keep writes a NIC's state, and tells the agent that there is something new to
// route. NICs call it from goroutines of their own.
func (v *vm) keep(i int, s responder.Kept) {
	v.keeping.Lock()
	defer v.keeping.Unlock()
	v.keeper.keep(i, s)
	if v.relay != nil {
		// Without an agent there is nobody to tell; it looks when it starts.
		_ = v.relay.WriteMessage([]byte{responder.RelayVersion, uint8(i), 0, 0})
	}
}

// compile parses a binding and makes its links.
func (v *vm) compile(text []byte) (responder.Binding, []*responder.Link, error) {
	b, err := parseBinding(text)
	if err != nil {
		return b, nil, fmt.Errorf("read %s/%s: %w", v.dir.path, bindingFile, err)
	}
	links := make([]*responder.Link, len(b.NICs))
	for i, n := range b.NICs {
		for _, other := range b.NICs[:i] {
			if n.Bridge == other.Bridge {
				return b, nil, fmt.Errorf("binding of %s: bridge %s is given twice", b.Name, n.Bridge)
			}
		}
		if links[i], err = responder.Compile(n); err != nil {
			return b, nil, fmt.Errorf("binding of %s: NIC %s on %s: %w", b.Name, n.GuestMAC, n.Bridge, err)
		}
	}
	return b, links, nil
}

func (v *vm) close() {
	for _, n := range v.nics {
		_ = n.server.Close()
	}
	if v.control != nil {
		v.control.close()
	}
	v.notify.close()
	v.keeper.close()
	v.relay.close()
	if v.dir != nil {
		v.dir.close()
	}
}

// serve runs until ctx ends (nil), the NICs change (nil) or one link breaks.
func (v *vm) serve(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return v.control.serve(ctx) })
	if v.relay != nil {
		g.Go(func() error { return v.relay.serve(ctx, v.nics) })
	}
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

// answer appends the reply to one line on the control socket. errRestart comes
// with a reply that is still to be sent.
func (v *vm) answer(reply []byte, line string) ([]byte, error) {
	switch line {
	case "status":
		return v.status.append(reply, true, v.hash[:], v.nics), nil
	case "reload":
		err := v.reload()
		if err != nil && !errors.Is(err, errRestart) {
			v.log.WithError(err).Warn("the binding was not taken over: the VM keeps its last good one")
			return appendFailure(reply, err), nil
		}
		return v.status.append(reply, err == nil, v.hash[:], v.nics), err
	}
	return appendFailure(reply, fmt.Errorf("unknown request %q: known are status and reload", line)), nil
}

// reload takes the binding over as a whole or not at all.
func (v *vm) reload() error {
	text, err := v.dir.binding()
	if err != nil {
		return err
	}
	hash := sha256.Sum256(text)
	if hash == v.hash {
		return nil
	}
	binding, links, err := v.compile(text)
	if err != nil {
		return err
	}
	if binding.UUID != v.uuid {
		return fmt.Errorf("the binding is of VM %s, this responder serves %s", binding.UUID, v.uuid)
	}
	if len(links) != len(v.nics) || speaks(binding) != (v.relay != nil) {
		return errRestart
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
	if v.relay != nil {
		for i, s := range servers {
			if s != v.nics[i].server {
				return errRestart // the agent knows them by their place
			}
		}
	}
	for i, s := range servers {
		s.Swap(links[i])
	}
	v.hash = hash
	return nil
}
