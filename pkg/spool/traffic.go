package spool

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/slash32/slash32/pkg/traffic"
)

// maxCounters bounds what is read of the counters' file, in bytes: that of more
// VMs than a host has.
const maxCounters = 64 << 20

// CountersFile has what was forwarded to and from each NIC.
func (d Dirs) CountersFile() string { return filepath.Join(d.State, "counters.json") }

// finalDir has what hooks read last of counters that they removed.
func (d Dirs) finalDir() string { return filepath.Join(d.State, "counters.d") }

// Counters reads the counters' file. Without one they are empty. One that cannot
// be read as such is set aside and is the error; the counters are empty then, too.
func (s *Spool) Counters() (*traffic.Book, error) {
	path := s.CountersFile()
	b, err := readUpTo(path, maxCounters)
	if errors.Is(err, fs.ErrNotExist) {
		return traffic.NewBook(), nil
	}
	var k *traffic.Book
	if err == nil {
		if k, err = traffic.Parse(b); err == nil {
			return k, nil
		}
	}
	aside := path + ".bad"
	if moved := os.Rename(path, aside); moved != nil {
		return traffic.NewBook(), fmt.Errorf("read %s: %w; it cannot be set aside: %w", path, err, moved)
	}
	return traffic.NewBook(), fmt.Errorf("read %s: %w; it is %s now, and the counters begin at zero", path, err, aside)
}

func readUpTo(path string, limit int64) ([]byte, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if fi.Size() > limit {
		return nil, fmt.Errorf("%d bytes are more than %d", fi.Size(), limit)
	}
	return os.ReadFile(path)
}

// WriteCounters replaces the counters' file. It is on the disk when it returns.
func (s *Spool) WriteCounters(d traffic.Document) error {
	b, err := json.Marshal(d)
	if err == nil {
		err = s.keep(s.CountersFile(), append(b, '\n'))
	}
	if err != nil {
		return fmt.Errorf("write the counters: %w", err)
	}
	return nil
}

// LeaveCounters keeps the last readings of a VM's counters for the agent.
func (s *Spool) LeaveCounters(id uuid.UUID, f traffic.Final, now time.Time) error {
	b, err := json.Marshal(f)
	if err == nil {
		err = s.keep(filepath.Join(s.finalDir(), fmt.Sprintf("%s.%d.json", id, now.UnixNano())), b)
	}
	if err != nil {
		return fmt.Errorf("keep the last counters of %s: %w", id, err)
	}
	return nil
}

// LeftCounters reads what LeaveCounters has kept, by name.
func (s *Spool) LeftCounters() (map[string]traffic.Final, error) {
	entries, err := os.ReadDir(s.finalDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the last counters of VMs: %w", err)
	}
	all := map[string]traffic.Final{}
	var errs []error
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		var f traffic.Final
		b, err := readUpTo(filepath.Join(s.finalDir(), e.Name()), maxFile)
		if err == nil {
			err = json.Unmarshal(b, &f)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("read the last counters of a VM, %s: %w", e.Name(), err))
		}
		all[e.Name()] = f // a broken one adds nothing, and is removed
	}
	return all, errors.Join(errs...)
}

// DropCounters removes what LeaveCounters has kept under a name.
func (s *Spool) DropCounters(name string) error {
	err := os.Remove(filepath.Join(s.finalDir(), filepath.Base(name)))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the last counters of a VM: %w", err)
	}
	return nil
}

// BootID names this boot of the host.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read which boot this is: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
