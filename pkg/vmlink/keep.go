package vmlink

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/lease"
	"github.com/slash32/slash32/pkg/responder"
)

// keeper is the file in which the VM's state outlives the process. Without a
// file it is nil, and the state lives as long as the process.
type keeper struct {
	path  string
	fd    int
	log   logrus.FieldLogger
	said  time.Time // when a failure was logged last
	state lease.State
	slot  [lease.SlotSize]byte
}

// sayAgain is the shortest time between two lines on a file that cannot be
// written.
const sayAgain = time.Minute

// openKeeper opens the file that the hook or the agent has made. There is none
// for a VM that needs none.
func openKeeper(path string, nics []responder.NIC, log logrus.FieldLogger) *keeper {
	if path == "" {
		return nil
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		if !errors.Is(err, unix.ENOENT) {
			log.WithError(err).Warnf("%s cannot be opened: what the guest is leased is forgotten when the responder ends", path)
		}
		return nil
	}
	k := &keeper{path: path, fd: fd, log: log}
	old, err := k.read()
	if err != nil && !errors.Is(err, lease.ErrEmpty) {
		log.WithError(err).Warnf("%s is not readable and is written anew: the guest's leases are known again when it renews them", path)
	}
	k.state.Seq = old.Seq
	for _, n := range nics {
		kept := lease.NIC{MAC: n.GuestMAC}
		for _, o := range old.NICs {
			if o.MAC == n.GuestMAC {
				setKept(&kept, keptOf(o)) // no more than we would write ourselves
			}
		}
		k.state.NICs = append(k.state.NICs, kept)
	}
	return k
}

func (k *keeper) read() (lease.State, error) {
	b := make([]byte, lease.FileSize)
	n := 0
	for n < len(b) {
		m, err := unix.Pread(k.fd, b[n:], int64(n))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return lease.State{}, fmt.Errorf("read it: %w", err)
		}
		if err == nil && m == 0 {
			break
		}
		n += max(m, 0)
	}
	return lease.Decode(b[:n])
}

// kept is what the file had of a NIC.
func (k *keeper) kept(i int) responder.Kept { return keptOf(k.state.NICs[i]) }

func keptOf(n lease.NIC) responder.Kept {
	out := responder.Kept{Profile: responder.ParseProfile(n.Profile), Booting: n.Booting, Booted: n.Booted, V4: n.V4}
	copy(out.V6[:], n.V6)
	copy(out.Prefixes[:], n.Prefixes)
	return out
}

// keep writes the state of a NIC. It is called by one goroutine at a time. What
// cannot be written is written with the next change; until then the other NICs are
// written without it.
func (k *keeper) keep(i int, s responder.Kept) {
	before, seq := k.kept(i), k.state.Seq
	leased := !sameLeases(before, s)
	setKept(&k.state.NICs[i], s)
	err := k.write(leased)
	if err == nil {
		return
	}
	setKept(&k.state.NICs[i], before)
	k.state.Seq = seq // the other slot is still the older one
	if time.Since(k.said) > sayAgain {
		k.said = time.Now()
		k.log.WithError(err).Warnf("%s cannot be written: what the guest is leased is forgotten when the responder ends", k.path)
	}
}

func setKept(n *lease.NIC, s responder.Kept) {
	n.Profile, n.Booting, n.Booted, n.V4 = s.Profile.String(), s.Booting, s.Booted, s.V4
	n.V6, n.Prefixes = n.V6[:0], n.Prefixes[:0]
	for _, v := range s.V6 {
		if v.Addr.IsValid() {
			n.V6 = append(n.V6, v)
		}
	}
	for _, p := range s.Prefixes {
		if p.Prefix.IsValid() {
			n.Prefixes = append(n.Prefixes, p)
		}
	}
}

// sameLeases compares what was leased and delegated.
func sameLeases(a, b responder.Kept) bool {
	return a.V4 == b.V4 && a.V6 == b.V6 && a.Prefixes == b.Prefixes
}

// write fills the older slot. A lease or prefix must be on disk before the guest
// has it; the rest may be lost with the host's power.
func (k *keeper) write(sync bool) error {
	k.state.Seq++
	b, err := lease.AppendSlot(k.slot[:0], k.state)
	if err != nil {
		return err
	}
	at := int64(k.state.Seq%2) * lease.SlotSize
	for len(b) > 0 {
		n, err := unix.Pwrite(k.fd, b, at)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		b, at = b[n:], at+int64(n)
	}
	if !sync {
		return nil
	}
	return unix.Fdatasync(k.fd)
}

func (k *keeper) close() {
	if k != nil {
		_ = unix.Close(k.fd)
	}
}

// descriptor is the file's, or -1.
func (k *keeper) descriptor() int {
	if k == nil {
		return -1
	}
	return k.fd
}

// leaseFile is the file of the VM whose directory is given.
func leaseFile(stateDir, vmDir string) string {
	if stateDir == "" {
		return ""
	}
	return filepath.Join(stateDir, "leases", filepath.Base(vmDir)+".json")
}
