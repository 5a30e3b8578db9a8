package spool

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/responder"
)

// maxFile bounds what is read of a declaration or binding, in bytes. A
// declaration holds a domain's XML (1 MiB at most), escaped.
const maxFile = 8 << 20

// DirsFromEnv takes the directories from the environment.
func DirsFromEnv(getenv func(string) string) Dirs {
	pick := func(name, def string) string {
		if v := getenv(name); v != "" {
			return v
		}
		return def
	}
	return Dirs{
		Config: pick("SLASH32_CONFIG_DIR", "/etc/slash32"),
		Run:    pick("SLASH32_RUN_DIR", "/run/slash32"),
		State:  pick("SLASH32_STATE_DIR", "/var/lib/slash32"),
	}
}

// Socket is the agent's socket.
func (d Dirs) Socket() string { return filepath.Join(d.Run, "slash32d.sock") }

// VMDir is the directory of one VM.
func (d Dirs) VMDir(id uuid.UUID) string { return filepath.Join(d.Run, "vm", id.String()) }

// BindingFile is the binding of one VM.
func (d Dirs) BindingFile(id uuid.UUID) string {
	return filepath.Join(d.VMDir(id), "binding.json")
}

// ResponderSocket is the socket of one VM's responder.
func (d Dirs) ResponderSocket(id uuid.UUID) string {
	return filepath.Join(d.VMDir(id), "responder.sock")
}

func (d Dirs) declarationFile(id uuid.UUID) string {
	return filepath.Join(d.VMDir(id), "declaration.json")
}

// Spool is the run directory.
type Spool struct {
	Dirs
}

// Open makes the directories below the run directory if they are not there.
func Open(d Dirs) (*Spool, error) {
	if err := os.MkdirAll(filepath.Join(d.Run, "vm"), 0o755); err != nil {
		return nil, fmt.Errorf("make the run directory: %w", err)
	}
	return &Spool{Dirs: d}, nil
}

// lockPoll is how often a taken lock is tried again. flock(2) can't be waited
// for with a deadline without a goroutine that would outlive it.
const lockPoll = 2 * time.Millisecond

// Lock takes the one lock under which the kernel is changed and declarations
// are written; unlock releases it. It waits as long as ctx lasts. The kernel
// drops the lock of a process that dies.
func (s *Spool) Lock(ctx context.Context) (unlock func(), err error) {
	path := filepath.Join(s.Run, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, fs.ErrNotExist) { // the run directory was wiped under us
		if err = os.MkdirAll(filepath.Join(s.Run, "vm"), 0o755); err == nil {
			f, err = os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open the lock: %w", err)
	}
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("lock %s, held by another slash32 process: %w", path, ctx.Err())
		case <-tick.C:
		}
	}
}

// Declarations reads all declarations, sorted by UUID. A file that can't be
// read is set aside (renamed to declaration.json.bad) and named in bad; the
// others are still returned. err is set only when the directory itself could
// not be listed: then nothing is known.
func (s *Spool) Declarations() (ds []Declaration, bad []error, err error) {
	entries, err := os.ReadDir(filepath.Join(s.Run, "vm"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list declarations: %w", err)
	}
	for _, e := range entries {
		id, err := uuid.Parse(e.Name())
		if err != nil || !e.IsDir() || len(e.Name()) != 36 {
			continue
		}
		d, err := s.Declaration(id)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			aside := s.declarationFile(id) + ".bad"
			if rerr := os.Rename(s.declarationFile(id), aside); rerr == nil {
				err = fmt.Errorf("%w; set aside as %s", err, aside)
			}
			bad = append(bad, err)
		default:
			ds = append(ds, d)
		}
	}
	slices.SortFunc(ds, func(a, b Declaration) int { return cmp.Compare(a.UUID.String(), b.UUID.String()) })
	return ds, bad, nil
}

// Declaration reads one declaration. The error wraps fs.ErrNotExist when there
// is none.
func (s *Spool) Declaration(id uuid.UUID) (Declaration, error) {
	var d Declaration
	if err := readJSON(s.declarationFile(id), &d); err != nil {
		return Declaration{}, fmt.Errorf("read the declaration of %s: %w", id, err)
	}
	if err := d.valid(id); err != nil {
		return Declaration{}, fmt.Errorf("read the declaration of %s: %w", id, err)
	}
	return d, nil
}

func (d Declaration) valid(id uuid.UUID) error {
	switch {
	case d.Version != DeclarationVersion:
		return fmt.Errorf("version %d, this build knows %d", d.Version, DeclarationVersion)
	case d.UUID != id:
		return fmt.Errorf("it is of VM %s", d.UUID)
	}
	switch d.Phase {
	case Preparing, Started, Stopped, Released:
		return nil
	}
	return fmt.Errorf("unknown phase %q", d.Phase)
}

// Claimants returns the declarations of other VMs than self that claim a part of
// c. It looks at the bytes of each file first and decodes only those that match,
// so that a start among thousands of VMs stays cheap.
func (s *Spool) Claimants(self uuid.UUID, c Claims) ([]Declaration, error) {
	ids, err := s.VMs()
	if err != nil {
		return nil, err
	}
	texts := c.texts()
	var found []Declaration
	for _, id := range ids {
		if id == self {
			continue
		}
		// A file that goes or breaks meanwhile is no claim: the agent sets it
		// aside and names it.
		raw, err := os.ReadFile(s.declarationFile(id))
		if err != nil || len(c.Prefixes) == 0 && !slices.ContainsFunc(texts, func(t []byte) bool { return bytes.Contains(raw, t) }) {
			continue
		}
		d, err := s.Declaration(id)
		if err != nil {
			continue
		}
		if c.meet(d.Claims()) {
			found = append(found, d)
		}
	}
	return found, nil
}

// WriteDeclaration replaces the declaration of d.UUID. The caller holds the
// lock.
func (s *Spool) WriteDeclaration(d Declaration) error {
	d.Version = DeclarationVersion
	if err := s.writeJSON(d.UUID, s.declarationFile(d.UUID), d, 0o600); err != nil {
		return fmt.Errorf("write the declaration of %s: %w", d.Name, err)
	}
	return nil
}

// WriteBinding replaces the binding of a VM if it differs from what is there,
// and tells whether it did. The file is readable by all: the responder reads it
// without privileges.
func (s *Spool) WriteBinding(id uuid.UUID, b responder.Binding) (changed bool, err error) {
	want, err := json.Marshal(b)
	if err != nil {
		return false, fmt.Errorf("write the binding of %s: %w", b.Name, err)
	}
	want = append(want, '\n')
	if have, err := os.ReadFile(s.BindingFile(id)); err == nil && string(have) == string(want) {
		return false, nil
	}
	if err := s.write(id, s.BindingFile(id), want, 0o644); err != nil {
		return false, fmt.Errorf("write the binding of %s: %w", b.Name, err)
	}
	return true, nil
}

// ReplaceBinding is WriteBinding for a guest that runs: prefixes that were
// advertised to it and are not in b are in what is written, which is returned, as
// deprecated ones.
func (s *Spool) ReplaceBinding(id uuid.UUID, b responder.Binding, now time.Time) (written responder.Binding, changed bool, err error) {
	// Few bindings have prefixes, and those of all VMs are looked at in each pass.
	if have, err := os.ReadFile(s.BindingFile(id)); err == nil && bytes.Contains(have, []byte(`"prefixes":[`)) {
		if old, err := s.Binding(id); err == nil {
			b = responder.Retire(old, b, now)
		}
	}
	changed, err = s.WriteBinding(id, b)
	return b, changed, err
}

// Binding reads the binding of a VM.
func (s *Spool) Binding(id uuid.UUID) (responder.Binding, error) {
	var b responder.Binding
	if err := readJSON(s.BindingFile(id), &b); err != nil {
		return b, fmt.Errorf("read the binding of %s: %w", id, err)
	}
	return b, nil
}

// Remove takes away everything of a VM. It is no error when nothing is there.
func (s *Spool) Remove(id uuid.UUID) error {
	if err := os.RemoveAll(s.VMDir(id)); err != nil {
		return fmt.Errorf("remove the files of VM %s: %w", id, err)
	}
	return nil
}

// RemoveBinding takes away what belongs to a responder and keeps the
// declaration.
func (s *Spool) RemoveBinding(id uuid.UUID) error {
	for _, name := range []string{"binding.json", "responder.sock", "responder.log"} {
		if err := os.Remove(filepath.Join(s.VMDir(id), name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the responder's files of VM %s: %w", id, err)
		}
	}
	return nil
}

// incomingLife is how long after MarkIncoming a VM's start counts as the end of
// a migration. libvirt prepares a VM at once after its migrate hook.
const incomingLife = 5 * time.Minute

func (d Dirs) incomingFile(id uuid.UUID) string {
	return filepath.Join(d.Run, "incoming", id.String())
}

// MarkIncoming notes that a VM is about to be prepared because it migrates to
// this host.
func (s *Spool) MarkIncoming(id uuid.UUID, now time.Time) error {
	dir := filepath.Dir(s.incomingFile(id))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("note the migration of %s: %w", id, err)
	}
	// What was left by migrations that came to nothing goes.
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("note the migration of %s: %w", id, err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && now.Sub(info.ModTime()) > incomingLife {
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
	if err := os.WriteFile(s.incomingFile(id), nil, 0o600); err != nil {
		return fmt.Errorf("note the migration of %s: %w", id, err)
	}
	return nil
}

// TakeIncoming tells whether a VM is noted to migrate to this host, once.
func (s *Spool) TakeIncoming(id uuid.UUID, now time.Time) bool {
	info, err := os.Stat(s.incomingFile(id))
	if err != nil {
		return false
	}
	return os.Remove(s.incomingFile(id)) == nil && now.Sub(info.ModTime()).Abs() < incomingLife
}

// VMs lists the VMs that have a directory, with or without a declaration.
func (s *Spool) VMs() ([]uuid.UUID, error) {
	entries, err := os.ReadDir(filepath.Join(s.Run, "vm"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the VMs' directories: %w", err)
	}
	var ids []uuid.UUID
	for _, e := range entries {
		if id, err := uuid.Parse(e.Name()); err == nil && len(e.Name()) == 36 {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Live tells whether d is of an incarnation that runs or is about to, by what
// the hook said alone. listed says whether libvirt lists the domain.
func (d Declaration) Live(now time.Time, listed bool) bool {
	switch d.Phase {
	case Preparing:
		return listed || now.Sub(d.At).Abs() < PrepareDeadline
	case Started:
		return true
	}
	return false
}

func readJSON(path string, v any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if fi.Size() > maxFile {
		return fmt.Errorf("%s: %d bytes, at most %d are read", path, fi.Size(), maxFile)
	}
	b := make([]byte, fi.Size())
	n, err := f.Read(b)
	if err != nil && n < len(b) {
		return fmt.Errorf("%s: %w", path, err)
	}
	dec := json.NewDecoder(strings.NewReader(string(b[:n])))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func (s *Spool) writeJSON(id uuid.UUID, path string, v any, mode os.FileMode) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.write(id, path, append(b, '\n'), mode)
}

func (s *Spool) write(id uuid.UUID, path string, b []byte, mode os.FileMode) error {
	if err := os.MkdirAll(s.VMDir(id), 0o755); err != nil {
		return err
	}
	// The run directory is a tmpfs: atomic replacement matters, fsync costs.
	return renameio.WriteFile(path, b, mode, renameio.WithTempDir(s.VMDir(id)), renameio.IgnoreUmask())
}
