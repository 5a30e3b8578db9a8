package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/slash32/slash32/pkg/pool"
)

func (d Dirs) poolDir() string { return filepath.Join(d.State, "pools") }

// PoolFile is where a network's IPv6 pool is kept. The name of a network is
// whatever the configuration says: what cannot stand in the name of a file is
// escaped as in a URL.
func (d Dirs) PoolFile(network string) string {
	return filepath.Join(d.poolDir(), url.PathEscape(network)+".json")
}

// UpstreamFile is where the DHCPv6 client of an interface keeps what it has. The
// agent makes it.
func (d Dirs) UpstreamFile(link string) string {
	return filepath.Join(d.State, "upstream", url.PathEscape(link)+".json")
}

// Upstreams lists the interfaces whose DHCPv6 client has kept anything, in order.
func (d Dirs) Upstreams() ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(d.UpstreamFile("")))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list what routers have given: %w", err)
	}
	return unescaped(entries, d.UpstreamFile), nil
}

// unescaped are the names, in order, whose files are among the entries.
func unescaped(entries []fs.DirEntry, file func(name string) string) []string {
	var names []string
	for _, e := range entries {
		escaped, ok := strings.CutSuffix(e.Name(), ".json")
		if name, err := url.PathUnescape(escaped); ok && err == nil && filepath.Base(file(name)) == e.Name() {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Pool reads the pool of a network. Without a file it is empty. A file that is
// broken is set aside and is an error; the pool is empty then, too.
func (s *Spool) Pool(network string) (pool.Pool, error) {
	path := s.PoolFile(network)
	b, err := readSmall(path)
	if errors.Is(err, fs.ErrNotExist) {
		return pool.Pool{Version: pool.FileVersion}, nil
	}
	if err != nil {
		return pool.Pool{}, fmt.Errorf("read the pool of network %q: %w", network, err)
	}
	p, err := pool.Decode(b)
	if err == nil {
		return p, nil
	}
	aside := strings.TrimSuffix(path, ".json") + ".bad"
	if rerr := os.Rename(path, aside); rerr != nil {
		return pool.Pool{}, fmt.Errorf("read the pool of network %q: %s: %w; it cannot be set aside: %w", network, path, err, rerr)
	}
	return pool.Pool{Version: pool.FileVersion}, fmt.Errorf("read the pool of network %q: %s: %w; it is set aside as %s", network, path, err, aside)
}

// readSmall reads a file of at most maxFile bytes. A longer one reads as empty, which
// none of ours is.
func readSmall(path string) ([]byte, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if fi.Size() > maxFile {
		return nil, nil
	}
	return os.ReadFile(path)
}

// WritePool replaces the pool of a network. It is on the disk when it returns. The
// caller holds the lock.
func (s *Spool) WritePool(network string, p pool.Pool) error {
	b, err := pool.Encode(p)
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%d bytes, at most %d are read", len(b), maxFile)
	}
	if err == nil {
		err = s.keep(s.PoolFile(network), b)
	}
	if err != nil {
		return fmt.Errorf("write the pool of network %q: %w", network, err)
	}
	return nil
}

// keep replaces a file that must outlive a crash of the host.
func (s *Spool) keep(path string, b []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := renameio.WriteFile(path, b, 0o600, renameio.WithTempDir(dir), renameio.IgnoreUmask()); err != nil {
		return err
	}
	d, err := os.Open(dir) // its new name, too
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Pools lists the networks that have a pool, in order.
func (s *Spool) Pools() ([]string, error) {
	entries, err := os.ReadDir(s.poolDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the pools: %w", err)
	}
	return unescaped(entries, s.PoolFile), nil
}

// RemovePool takes away the pool of a network, also a broken one.
func (s *Spool) RemovePool(network string) error {
	path := s.PoolFile(network)
	for _, path := range []string{path, strings.TrimSuffix(path, ".json") + ".bad"} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the pool of network %q: %w", network, err)
		}
	}
	return nil
}
