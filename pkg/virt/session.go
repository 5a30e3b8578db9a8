package virt

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
	"libvirt.org/go/libvirt"
)

const (
	// maxAge bounds the age of a domain's XML: a change of an interface of a
	// running domain (virsh update-device) sends no event.
	maxAge = 5 * time.Minute
	// fetchers is how many domains are asked for at once; libvirtd takes five
	// requests of a client at once by default.
	fetchers = 4
)

// session is one connection while it lasts.
type session struct {
	conn      *libvirt.Connect
	wake      func(string)
	callbacks []int
	busy      chan struct{} // has a place for the one list under way
	strikes   atomic.Int32

	once sync.Once
	lost chan struct{} // closed when the connection is of no more use
	why  error         // set before lost is closed

	mu       sync.Mutex
	cache    map[uuid.UUID]entry
	fetching map[uuid.UUID]bool // being fetched, and nothing has changed since
}

// entry is what is kept of a domain.
type entry struct {
	domain Domain
	at     time.Time
}

// open connects, then registers for events.
func open(uri string, wake func(string)) (*session, error) {
	conn, err := libvirt.NewConnectReadOnly(uri)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	s := &session{
		conn: conn, wake: wake,
		busy: make(chan struct{}, 1), lost: make(chan struct{}),
		cache: map[uuid.UUID]entry{}, fetching: map[uuid.UUID]bool{},
	}
	if err := s.register(); err != nil {
		s.close()
		return nil, fmt.Errorf("register for events: %w", err)
	}
	return s, nil
}

func (s *session) register() error {
	// A connection within the process (test:///) has nothing to keep alive.
	if err := s.conn.SetKeepAlive(keepAlive, keepCount); err != nil && !isCode(err, libvirt.ERR_NO_SUPPORT) {
		return err
	}
	err := s.conn.RegisterCloseCallback(func(_ *libvirt.Connect, reason libvirt.ConnectCloseReason) {
		s.drop(fmt.Errorf("connection closed: %s", closeReason(reason)))
	})
	if err != nil && !isCode(err, libvirt.ERR_NO_SUPPORT) {
		return err
	}
	// The callbacks' domain is borrowed and they run on the event loop: they take
	// its UUID, which is no call to libvirtd, and that is all.
	c := s.conn
	for _, register := range []func() (int, error){
		func() (int, error) {
			return c.DomainEventLifecycleRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, _ *libvirt.DomainEventLifecycle) {
				s.changed(d, "lifecycle")
			})
		},
		func() (int, error) {
			return c.DomainEventMetadataChangeRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, _ *libvirt.DomainEventMetadataChange) {
				s.changed(d, "metadata changed")
			})
		},
		func() (int, error) {
			return c.DomainEventDeviceAddedRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, _ *libvirt.DomainEventDeviceAdded) {
				s.changed(d, "device added")
			})
		},
		func() (int, error) {
			return c.DomainEventDeviceRemovedRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, _ *libvirt.DomainEventDeviceRemoved) {
				s.changed(d, "device removed")
			})
		},
	} {
		id, err := register()
		if err != nil {
			return err
		}
		s.callbacks = append(s.callbacks, id)
	}
	return nil
}

// close may hang as long as libvirtd does.
func (s *session) close() {
	// What fails here fails because the connection is broken, and then the server
	// has forgotten it all.
	for _, id := range s.callbacks {
		_ = s.conn.DomainEventDeregister(id)
	}
	_ = s.conn.UnregisterCloseCallback()
	s.unref()
}

func (s *session) unref() { _, _ = s.conn.Close() }

// drop says that the connection is of no more use. The first reason counts.
func (s *session) drop(why error) {
	s.once.Do(func() {
		s.why = why
		close(s.lost)
	})
}

// late counts a list that did not come in time.
func (s *session) late(ctx context.Context) error {
	err := ctx.Err()
	if errors.Is(err, context.DeadlineExceeded) && s.strikes.Add(1) >= maxStrikes {
		s.drop(fmt.Errorf("%d lists in a row did not come in time", maxStrikes))
	}
	return fmt.Errorf("list libvirt's domains: no answer in time: %w", err)
}

// changed forgets what is kept of a domain and asks for a new list.
func (s *session) changed(d *libvirt.Domain, reason string) {
	if id, err := domainUUID(d); err == nil {
		s.mu.Lock()
		delete(s.cache, id)
		delete(s.fetching, id)
		s.mu.Unlock()
	}
	s.wake(reason)
}

// list asks for the active domains, and for the details of those that are not
// kept. A domain that ends meanwhile is not in the list.
func (s *session) list() ([]Domain, error) {
	active, err := s.conn.ListAllDomains(libvirt.CONNECT_LIST_DOMAINS_ACTIVE)
	if err != nil {
		return nil, err
	}
	defer func() {
		for i := range active {
			_ = active[i].Free() // fails only for what is no domain
		}
	}()
	defer func() {
		s.mu.Lock()
		clear(s.fetching)
		s.mu.Unlock()
	}()
	domains := make([]*Domain, len(active))
	var fetch errgroup.Group
	fetch.SetLimit(fetchers)
	for i := range active {
		fetch.Go(func() error {
			var err error
			domains[i], err = s.domain(&active[i])
			return err
		})
	}
	if err := fetch.Wait(); err != nil {
		return nil, err
	}
	list := make([]Domain, 0, len(domains))
	listed := make(map[uuid.UUID]bool, len(domains))
	for _, d := range domains {
		if d != nil {
			list = append(list, *d)
			listed[d.UUID] = true
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.cache {
		if !listed[id] {
			delete(s.cache, id)
		}
	}
	return list, nil
}

// defined lists the UUIDs of all domains.
func (s *session) defined() ([]uuid.UUID, error) {
	all, err := s.conn.ListAllDomains(0)
	if err != nil {
		return nil, err
	}
	ids := make([]uuid.UUID, 0, len(all))
	for i := range all {
		raw, uerr := all[i].GetUUID()
		_ = all[i].Free() // fails only for what is no domain
		if uerr != nil {
			return nil, fmt.Errorf("read a domain's UUID: %w", uerr)
		}
		id, uerr := uuid.FromBytes(raw)
		if uerr != nil {
			return nil, fmt.Errorf("read a domain's UUID: %w", uerr)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// domain is one domain's details; nil when it is no longer active.
func (s *session) domain(d *libvirt.Domain) (*Domain, error) {
	id, err := domainUUID(d)
	if err != nil {
		return nil, fmt.Errorf("read a domain's UUID: %w", err)
	}
	name, err := d.GetName()
	if err != nil {
		return nil, fmt.Errorf("read the name of %s: %w", id, err)
	}
	run, err := d.GetID()
	if err != nil {
		return nil, gone(err, "read the number of "+name)
	}
	s.mu.Lock()
	e, kept := s.cache[id]
	if kept && e.domain.ID == int(run) && e.domain.Name == name && time.Since(e.at) < maxAge {
		s.mu.Unlock()
		return &e.domain, nil
	}
	s.fetching[id] = true
	s.mu.Unlock()
	e = entry{domain: Domain{UUID: id, Name: name, ID: int(run)}, at: time.Now()}
	state, reason, err := d.GetState()
	if err != nil {
		return nil, gone(err, "read the state of "+name)
	}
	if state == libvirt.DOMAIN_SHUTOFF {
		return nil, nil
	}
	e.domain.State = stateText(state, reason)
	if e.domain.XML, err = d.GetXMLDesc(0); err != nil {
		return nil, gone(err, "read the XML of "+name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fetching[id] { // no event has come since
		s.cache[id] = e
		delete(s.fetching, id)
	}
	return &e.domain, nil
}

// gone drops the error of a domain that has ended meanwhile.
func gone(err error, doing string) error {
	if isCode(err, libvirt.ERR_NO_DOMAIN) {
		return nil
	}
	return fmt.Errorf("%s: %w", doing, err)
}

func isCode(err error, code libvirt.ErrorNumber) bool {
	var e libvirt.Error
	return errors.As(err, &e) && e.Code == code
}

func domainUUID(d *libvirt.Domain) (uuid.UUID, error) {
	b, err := d.GetUUID()
	if err != nil {
		return uuid.Nil, err
	}
	return uuid.FromBytes(b)
}

func closeReason(r libvirt.ConnectCloseReason) string {
	switch r {
	case libvirt.CONNECT_CLOSE_REASON_ERROR:
		return "error"
	case libvirt.CONNECT_CLOSE_REASON_EOF:
		return "by libvirtd"
	case libvirt.CONNECT_CLOSE_REASON_KEEPALIVE:
		return "libvirtd does not answer"
	case libvirt.CONNECT_CLOSE_REASON_CLIENT:
		return "by us"
	}
	return fmt.Sprintf("reason %d", r)
}

// stateText is what virsh domstate says, with the reason where it changes what
// slash32 may do.
func stateText(state libvirt.DomainState, reason int) string {
	switch state {
	case libvirt.DOMAIN_RUNNING:
		return "running"
	case libvirt.DOMAIN_BLOCKED:
		return "idle"
	case libvirt.DOMAIN_SHUTDOWN:
		return "in shutdown"
	case libvirt.DOMAIN_CRASHED:
		return "crashed"
	case libvirt.DOMAIN_PMSUSPENDED:
		return "pmsuspended"
	case libvirt.DOMAIN_PAUSED:
		switch libvirt.DomainPausedReason(reason) {
		case libvirt.DOMAIN_PAUSED_MIGRATION:
			return "paused (migrating)"
		case libvirt.DOMAIN_PAUSED_STARTING_UP:
			return "paused (starting up)"
		case libvirt.DOMAIN_PAUSED_POSTCOPY:
			return "paused (post-copy)"
		case libvirt.DOMAIN_PAUSED_POSTCOPY_FAILED:
			return "paused (post-copy failed)"
		}
		return "paused"
	}
	return "no state"
}
