package upstream

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
	"github.com/google/uuid"

	"github.com/slash32/slash32/pkg/pool"
)

// kept is what outlives the program.
type kept struct {
	duid   []byte
	iaid   [4]byte
	server []byte // the DUID of the server that delegates; nil: none
	leases []Lease
	wanted []netip.Prefix // asked for again: what it had last
	t1, t2 time.Time
	key    []byte // of the server's RECONFIGURE
	replay uint64 // of the last one
}

// fileVersion is the version of the file's form, maxFile the most that is read of
// it, in bytes.
const (
	fileVersion = 1
	maxFile     = 64 << 10
)

// file is the form on the disk. Times are Unix time, seconds; 0: never.
type file struct {
	Version  int          `json:"version"`
	DUID     string       `json:"duid"` // as all octets, in hex
	IAID     uint32       `json:"iaid"`
	Server   string       `json:"server,omitempty"`
	T1       int64        `json:"t1,omitempty"`
	T2       int64        `json:"t2,omitempty"`
	Prefixes []filePrefix `json:"prefixes,omitempty"`
	Key      string       `json:"key,omitempty"`
	Replay   uint64       `json:"replay,omitempty"`
}

type filePrefix struct {
	Prefix    netip.Prefix `json:"prefix"`
	Preferred int64        `json:"preferred,omitempty"`
	Valid     int64        `json:"valid,omitempty"`
}

func encode(k kept) ([]byte, error) {
	f := file{Version: fileVersion, DUID: hex.EncodeToString(k.duid), IAID: binary.BigEndian.Uint32(k.iaid[:]),
		Server: hex.EncodeToString(k.server), T1: toUnix(k.t1), T2: toUnix(k.t2), Key: hex.EncodeToString(k.key), Replay: k.replay}
	for _, l := range k.leases {
		f.Prefixes = append(f.Prefixes, filePrefix{l.Prefix, toUnix(l.Preferred), toUnix(l.Valid)})
	}
	b, err := json.MarshalIndent(f, "", " ")
	return append(b, '\n'), err
}

// decode reads what encode wrote. Anything else is an error.
func decode(b []byte) (kept, error) {
	var f file
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return kept{}, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return kept{}, errors.New("more follows it")
	}
	var k kept
	var bad [3]error
	k.duid, bad[0] = hex.DecodeString(f.DUID)
	k.server, bad[1] = hex.DecodeString(f.Server)
	k.key, bad[2] = hex.DecodeString(f.Key)
	if err := errors.Join(bad[:]...); err != nil {
		return kept{}, err
	}
	inRange := func(ts ...int64) bool {
		for _, t := range ts {
			if t < 0 || t > 1<<40 {
				return false
			}
		}
		return true
	}
	switch {
	case f.Version != fileVersion:
		return kept{}, fmt.Errorf("version %d, this build knows %d", f.Version, fileVersion)
	case len(k.duid) < 3 || len(k.duid) > maxDUID || len(k.server) > maxDUID || len(k.server) < 3 && len(k.server) > 0:
		return kept{}, errors.New("a DUID has 3 to 130 octets")
	case len(k.key) != keySize && len(k.key) > 0:
		return kept{}, fmt.Errorf("a key has %d octets", keySize)
	case len(f.Prefixes) > maxPrefixes:
		return kept{}, fmt.Errorf("%d prefixes, at most %d are kept", len(f.Prefixes), maxPrefixes)
	case len(f.Prefixes) > 0 && len(k.server) == 0:
		return kept{}, errors.New("prefixes of no server")
	case !inRange(f.T1, f.T2):
		return kept{}, errors.New("T1 or T2 is out of range")
	}
	for i, p := range f.Prefixes {
		if err := pool.Usable(p.Prefix); err != nil {
			return kept{}, err
		}
		if p.Prefix.Bits() > 64 || !inRange(p.Preferred, p.Valid) {
			return kept{}, fmt.Errorf("prefix %s: its length or a lifetime is out of range", p.Prefix)
		}
		for _, o := range f.Prefixes[:i] {
			if o.Prefix.Overlaps(p.Prefix) {
				return kept{}, fmt.Errorf("prefixes %s and %s overlap", o.Prefix, p.Prefix)
			}
		}
		k.leases = append(k.leases, Lease{p.Prefix, fromUnix(p.Preferred), fromUnix(p.Valid)})
	}
	binary.BigEndian.PutUint32(k.iaid[:], f.IAID)
	k.t1, k.t2, k.replay = fromUnix(f.T1), fromUnix(f.T2), f.Replay
	if len(k.server) == 0 {
		k.server = nil
	}
	if len(k.key) == 0 {
		k.key = nil
	}
	k.wanted = prefixes(k.leases)
	return k, nil
}

func toUnix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return max(t.Unix(), 1)
}

func fromUnix(s int64) time.Time {
	if s == 0 {
		return time.Time{}
	}
	return time.Unix(s, 0)
}

// load reads the file. Without one there is nothing; a broken one is set aside and
// is an error, and there is nothing then, either.
func load(path string) (kept, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return kept{}, nil
	}
	if err != nil {
		return kept{}, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err = errors.Join(err, f.Close()); err != nil {
		return kept{}, fmt.Errorf("read %s: %w", path, err)
	}
	k, err := decode(b)
	if err == nil {
		return k, nil
	}
	if rerr := os.Rename(path, path+".bad"); rerr != nil {
		return kept{}, fmt.Errorf("read %s: %w; it cannot be set aside: %w", path, err, rerr)
	}
	return kept{}, fmt.Errorf("read %s: %w; it is set aside as %s.bad", path, err, path)
}

// save replaces the file. It is on the disk when it returns.
func save(path string, k kept) error {
	b, err := encode(k)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := renameio.WriteFile(path, b, 0o600, renameio.WithTempDir(dir), renameio.IgnoreUmask()); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// identity makes a DUID and an IAID for an interface. The DUID is of its hardware
// address (DUID-LL, RFC 8415 §11.4), so that it is the same when the file is lost;
// for an interface without one, a random UUID (§11.5). The IAID is of its name.
func identity(link string, hw net.HardwareAddr) (duid []byte, iaid [4]byte, err error) {
	if len(hw) == 6 {
		duid = append([]byte{0, 3, 0, 1}, hw...)
	} else {
		id, err := uuid.NewRandom()
		if err != nil {
			return nil, iaid, fmt.Errorf("make a DUID: %w", err)
		}
		duid = append([]byte{0, 4}, id[:]...)
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(link))
	binary.BigEndian.PutUint32(iaid[:], h.Sum32())
	return duid, iaid, nil
}
