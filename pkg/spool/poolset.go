package spool

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/pool"
	"github.com/slash32/slash32/pkg/problem"
)

// PoolSet are the IPv6 pools of a configuration's networks, in memory. Whoever
// has one holds the lock.
type PoolSet struct {
	spool  *Spool
	now    time.Time
	pools  map[string]*pool.Pool
	dirty  map[string]bool
	owners map[uuid.UUID]bool // VMs that have a part of a pool
	local  func(network string) (netip.Prefix, error)
}

// Given is what an upstream router has given.
type Given struct {
	Prefix           netip.Prefix
	Preferred, Valid time.Time // zero: without an end
}

// OpenPools reads the pools of all networks that have one, and gives those their
// base whose base the configuration says. The errors are of pools that could not
// be read; they are empty.
func (s *Spool) OpenPools(c config.Config, now time.Time) (*PoolSet, []error) {
	return s.openPools(c, now, s.Pool, s.ula)
}

// PreviewPools is OpenPools for who only wants to see what a VM would get: it
// needs no lock and writes nothing. Do not Save what it returns.
func (s *Spool) PreviewPools(c config.Config, now time.Time) (*PoolSet, []error) {
	read := func(network string) (pool.Pool, error) {
		b, err := readSmall(s.PoolFile(network))
		if errors.Is(err, fs.ErrNotExist) {
			return pool.Pool{Version: pool.FileVersion}, nil
		}
		if err != nil {
			return pool.Pool{}, fmt.Errorf("read the pool of network %q: %w", network, err)
		}
		return pool.Decode(b)
	}
	local := func(network string) (netip.Prefix, error) {
		net, err := s.readULA(network)
		if errors.Is(err, fs.ErrNotExist) {
			return netip.Prefix{}, nil // made at the first start
		}
		return net, err
	}
	return s.openPools(c, now, read, local)
}

func (s *Spool) openPools(c config.Config, now time.Time, read func(string) (pool.Pool, error), local func(string) (netip.Prefix, error)) (*PoolSet, []error) {
	set := &PoolSet{
		spool: s, now: now, local: local,
		pools: map[string]*pool.Pool{}, dirty: map[string]bool{}, owners: map[uuid.UUID]bool{},
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(c.Networks)) {
		from := c.Networks[name].Pool6
		if from == (config.Pool6{}) {
			continue
		}
		p, err := read(name)
		if err != nil {
			errs = append(errs, err)
		}
		set.pools[name] = &p
		set.dirty[name] = p.Expire(now)
		for _, b := range p.Blocks {
			set.owners[b.VM] = true
		}
		switch {
		case from.Prefix.IsValid():
			err = set.Renumber(name, Given{Prefix: from.Prefix})
		case from.ULA:
			err = set.Local(name)
		default:
			continue
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	return set, errs
}

// Renumber makes what was given the base of a network's pool.
func (s *PoolSet) Renumber(network string, g Given) error {
	p := s.pools[network]
	changed, err := p.Renumber(g.Prefix, g.Preferred, g.Valid, s.now)
	if err != nil {
		return fmt.Errorf("ipv6_pool of network %s: %w", network, err)
	}
	s.dirty[network] = s.dirty[network] || changed
	return nil
}

// Local makes the network's unique local prefix the base of its pool.
func (s *PoolSet) Local(network string) error {
	net, err := s.local(network)
	if err != nil {
		return err
	}
	return s.Renumber(network, Given{Prefix: net})
}

// ula is the unique local prefix of a network. It is made once and kept (RFC 4193
// §3.2).
func (s *Spool) ula(network string) (netip.Prefix, error) {
	net, err := s.readULA(network)
	if !errors.Is(err, fs.ErrNotExist) {
		return net, err
	}
	net, err = pool.ULA(rand.Reader)
	if err == nil {
		err = s.keep(s.ulaFile(network), []byte(net.String()+"\n"))
	}
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("make a unique local prefix for network %s: %w", network, err)
	}
	return net, nil
}

func (d Dirs) ulaFile(network string) string {
	return strings.TrimSuffix(d.PoolFile(network), ".json") + ".ula"
}

func (s *Spool) readULA(network string) (netip.Prefix, error) {
	b, err := os.ReadFile(s.ulaFile(network))
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("read the unique local prefix of network %s: %w", network, err)
	}
	net, err := netip.ParsePrefix(strings.TrimSpace(string(b)))
	if err == nil {
		err = pool.Usable(net)
	}
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("read the unique local prefix of network %s: %s: %w. Fix: remove it, and another is made", network, s.ulaFile(network), err)
	}
	return net, nil
}

// Current is the base that a network's VMs are numbered from.
func (s *PoolSet) Current(network string) (netip.Prefix, bool) {
	p, ok := s.pools[network]
	if !ok {
		return netip.Prefix{}, false
	}
	b, ok := p.Current(s.now)
	return b.Prefix, ok
}

// Resolve is vm with what its NICs are given of the pools that they ask.
func (s *PoolSet) Resolve(vm intent.VM) (intent.VM, problem.List) {
	asks := func(n intent.NIC) bool {
		return n.Auto6 || slices.ContainsFunc(n.Prefixes, func(p intent.Prefix) bool { return p.Auto != 0 })
	}
	if !s.owners[vm.UUID] && !slices.ContainsFunc(vm.NICs, asks) {
		return vm, nil
	}
	vm.NICs = slices.Clone(vm.NICs)
	for i := range vm.NICs {
		n := &vm.NICs[i]
		n.Addrs6, n.Prefixes = slices.Clone(n.Addrs6), slices.Clone(n.Prefixes)
	}
	var ps problem.List
	for _, name := range slices.Sorted(maps.Keys(s.pools)) {
		changed, found := s.pools[name].Resolve(&vm, name, s.now)
		s.dirty[name] = s.dirty[name] || changed
		ps = append(ps, found...)
	}
	return vm, ps.WithVM(vm.Name)
}

// Sweep takes back what VMs have had that are no more; see pool.Sweep.
func (s *PoolSet) Sweep(defined []uuid.UUID) {
	for name, p := range s.pools {
		s.dirty[name] = p.Sweep(defined, s.now) || s.dirty[name]
	}
}

// Bases are the prefixes that the pools are or were lately, by network.
func (s *PoolSet) Bases() map[string][]netip.Prefix {
	bases := map[string][]netip.Prefix{}
	for name, p := range s.pools {
		for _, b := range p.Bases {
			bases[name] = append(bases[name], b.Prefix)
		}
	}
	return bases
}

// Ends is when the next base ends; zero: none does.
func (s *PoolSet) Ends() time.Time {
	var first time.Time
	for _, p := range s.pools {
		for _, b := range p.Bases {
			if t := time.Unix(b.Until, 0); b.Until != 0 && (first.IsZero() || t.Before(first)) {
				first = t
			}
		}
	}
	return first
}

// Save writes what has changed. Before that, nothing of it may be used.
func (s *PoolSet) Save() error {
	var errs []error
	for name, dirty := range s.dirty {
		if dirty {
			errs = append(errs, s.spool.WritePool(name, *s.pools[name]))
			s.dirty[name] = false
		}
	}
	return errors.Join(errs...)
}
