package spool

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/lease"
	"github.com/slash32/slash32/pkg/responder"
)

func (d Dirs) leaseDir() string { return filepath.Join(d.State, "leases") }

// LeaseFile is where a VM's responder keeps what must outlive it.
func (d Dirs) LeaseFile(id uuid.UUID) string {
	return filepath.Join(d.leaseDir(), id.String()+".json")
}

// Keeps tells whether a VM with the binding has anything to keep.
func Keeps(b responder.Binding) bool {
	for _, n := range b.NICs {
		if n.Relay != nil || n.Delegates() {
			return true
		}
		for _, boot := range n.V4.Boots {
			if boot.Once {
				return true
			}
		}
	}
	return false
}

// EnsureLease makes the lease file of a VM that has something to keep, since its
// responder has no right to. It takes all of its space at once, so that a disk that
// is full later does not keep a lease from being written. What is written in one
// that is there stays. An error is no reason not to serve the VM: the responder then
// keeps all in memory.
func (s *Spool) EnsureLease(id uuid.UUID, b responder.Binding) error {
	if !Keeps(b) {
		return nil
	}
	if err := os.MkdirAll(s.leaseDir(), 0o700); err != nil {
		return fmt.Errorf("make the directory of lease files: %w", err)
	}
	f, err := os.OpenFile(s.LeaseFile(id), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("make the lease file of %s: %w", b.Name, err)
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, lease.FileSize)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = nil // the filesystem cannot promise that
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("make the lease file of %s: %w", b.Name, err)
	}
	return nil
}

// Lease reads the lease file of a VM. Without a file, and for one that has
// nothing yet, the state is empty. A file of which nothing is whole is an error,
// and a copy of it is set aside: the responder writes it anew.
func (s *Spool) Lease(id uuid.UUID) (lease.State, error) {
	path := s.LeaseFile(id)
	var failed error
	var text []byte
	for range 2 { // the first may have met a write
		b, err := readLease(path)
		if errors.Is(err, fs.ErrNotExist) {
			return lease.State{}, nil
		}
		if err != nil {
			return lease.State{}, fmt.Errorf("read the lease file of %s: %w", id, err)
		}
		state, err := lease.Decode(b)
		if err == nil || errors.Is(err, lease.ErrEmpty) {
			return state, nil
		}
		failed, text = err, b
	}
	aside := s.badLease(id)
	if _, err := os.Lstat(aside); errors.Is(err, fs.ErrNotExist) {
		if err := os.WriteFile(aside, text, 0o600); err != nil {
			return lease.State{}, fmt.Errorf("read the lease file %s: %w; it cannot be set aside: %w", path, failed, err)
		}
	}
	return lease.State{}, fmt.Errorf("read the lease file %s: %w; there is a copy of it in %s", path, failed, aside)
}

func readLease(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, lease.FileSize)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b[:n], nil
}

// badLease is where a lease file is set aside.
func (d Dirs) badLease(id uuid.UUID) string {
	return strings.TrimSuffix(d.LeaseFile(id), ".json") + ".bad"
}

// Leases lists the VMs that have a lease file.
func (s *Spool) Leases() ([]uuid.UUID, error) {
	entries, err := os.ReadDir(s.leaseDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the lease files: %w", err)
	}
	var ids []uuid.UUID
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if id, err := uuid.Parse(name); ok && err == nil && len(name) == 36 {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// RemoveLease takes away the lease file of a VM that is no more.
func (s *Spool) RemoveLease(id uuid.UUID) error {
	for _, path := range []string{s.LeaseFile(id), s.badLease(id)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the lease file of %s: %w", id, err)
		}
	}
	return nil
}
