// Package traffic adds up what is forwarded to and from each NIC, over restarts
// of the agent, of the VM and of the host: from readings of counters in the
// kernel, which begin at zero again and again. It is pure.
package traffic

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/slash32/slash32/pkg/mac"
)

// Count is what one counter has counted. Bytes are those of IP packets; what
// segmentation offload keeps together is one packet.
type Count struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Classes are the counts of one direction by who is at the other end.
type Classes struct {
	Internet Count `json:"internet"`
	Local    Count `json:"local"` // somebody in the configuration's local_prefixes
}

// Traffic is what was forwarded to (In) and from (Out) a guest.
type Traffic struct {
	In  Classes `json:"in"`
	Out Classes `json:"out"`
}

// Counter is one of the four counters of a NIC.
type Counter int

// The counters.
const (
	InInternet Counter = iota
	InLocal
	OutInternet
	OutLocal
)

// Count is where a counter's count is.
func (t *Traffic) Count(c Counter) *Count {
	return [...]*Count{&t.In.Internet, &t.In.Local, &t.Out.Internet, &t.Out.Local}[c]
}

func (t *Traffic) counts() []*uint64 {
	var n []*uint64
	for c := InInternet; c <= OutLocal; c++ {
		x := t.Count(c)
		n = append(n, &x.Packets, &x.Bytes)
	}
	return n
}

// NIC names what is added up for.
type NIC struct {
	UUID uuid.UUID
	MAC  mac.Addr
}

// Owner is a NIC with its VM's name.
type Owner struct {
	NIC
	Name string
}

// Entry is one NIC's sum.
type Entry struct {
	UUID   uuid.UUID `json:"uuid"`
	MAC    mac.Addr  `json:"mac"`
	Name   string    `json:"name"`             // of the VM, when it was last seen
	Bridge string    `json:"bridge,omitempty"` // whose counters are its own now
	At     time.Time `json:"at"`               // of the last reading that was its own
	Traffic
	// Read is the last reading since the counters began: what is above it has not
	// been added yet.
	Read Traffic `json:"read"`
}

// Document is the file that a Book is kept in. It is for others to read, too.
type Document struct {
	Version int    `json:"version"` // 1
	Boot    string `json:"boot"`    // the host's boot that the readings are of
	// Taken are the records of hooks that are in the sums already.
	Taken []string `json:"taken,omitempty"`
	NICs  []Entry  `json:"nics"` // sorted by UUID and MAC
}

const version = 1

// Book has the sums. It is not safe for concurrent use.
type Book struct {
	boot    string
	taken   []string
	entries map[NIC]*Entry
	bridges map[string]*Entry
}

// NewBook makes an empty one.
func NewBook() *Book { return &Book{entries: map[NIC]*Entry{}, bridges: map[string]*Entry{}} }

// Parse reads the file of a Book.
func Parse(b []byte) (*Book, error) {
	var d Document
	if err := json.Unmarshal(b, &d); err != nil {
		return nil, fmt.Errorf("parse the counters: %w", err)
	}
	if d.Version != version {
		return nil, fmt.Errorf("parse the counters: version %d is not %d", d.Version, version)
	}
	k := NewBook()
	k.boot, k.taken = d.Boot, d.Taken
	for _, e := range d.NICs {
		k.entries[NIC{e.UUID, e.MAC}] = &e
		if e.Bridge != "" {
			k.bridges[e.Bridge] = &e
		}
	}
	return k, nil
}

// Document is the book as its file has it.
func (k *Book) Document() Document {
	d := Document{Version: version, Boot: k.boot, Taken: k.taken, NICs: make([]Entry, 0, len(k.entries))}
	for _, e := range k.entries {
		d.NICs = append(d.NICs, *e)
	}
	slices.SortFunc(d.NICs, func(a, b Entry) int {
		return cmp.Or(slices.Compare(a.UUID[:], b.UUID[:]), slices.Compare(a.MAC[:], b.MAC[:]))
	})
	return d
}

// Booted says which boot of the host the next readings are of: those of another
// began at zero.
func (k *Book) Booted(id string) {
	if k.boot == id {
		return
	}
	k.boot = id
	k.RestartAll()
}

// Own says whose the bridges' counters are from now on. What a counter has
// counted for the owner before stays that one's. It reports whether anything
// changed.
func (k *Book) Own(owners map[string]Owner, now time.Time) (changed bool) {
	for bridge, o := range owners {
		e := k.entries[o.NIC]
		if e == nil {
			e = &Entry{UUID: o.UUID, MAC: o.MAC, At: now}
			k.entries[o.NIC] = e
		}
		if e.Name == o.Name && e.Bridge == bridge {
			continue
		}
		changed, e.Name = true, o.Name
		if e.Bridge == bridge {
			continue
		}
		if e.Bridge != "" {
			delete(k.bridges, e.Bridge)
		}
		e.Bridge, e.Read = bridge, Traffic{}
		if before := k.bridges[bridge]; before != nil && before != e {
			e.Read = before.Read
			before.Bridge, before.Read = "", Traffic{}
		}
		k.bridges[bridge] = e
	}
	return changed
}

// Observe adds what the readings, by bridge, have more than the last ones. One
// that has less has begun anew. It reports whether a sum changed.
func (k *Book) Observe(readings map[string]Traffic, now time.Time) (changed bool) {
	for bridge, read := range readings {
		e := k.bridges[bridge]
		if e == nil {
			continue
		}
		e.At = now
		if read == e.Read {
			continue
		}
		changed = true
		sum, last, cur := e.Traffic.counts(), e.Read.counts(), read.counts()
		for i := range sum {
			more := *cur[i]
			if *cur[i] >= *last[i] {
				more -= *last[i]
			}
			*sum[i] += more
		}
		e.Read = read
	}
	return changed
}

// Restart says that a bridge's counter has begun anew, or is gone.
func (k *Book) Restart(bridge string, c Counter) {
	if e := k.bridges[bridge]; e != nil {
		*e.Read.Count(c) = Count{}
	}
}

// RestartAll says so of all.
func (k *Book) RestartAll() {
	for _, e := range k.entries {
		e.Read = Traffic{}
	}
}

// Take adds the last readings of counters that a hook removed, once for each
// name, and reports whether it did.
func (k *Book) Take(name string, f Final, now time.Time) bool {
	if slices.Contains(k.taken, name) {
		return false
	}
	k.taken = append(k.taken, name)
	if f.Boot == k.boot {
		k.Observe(f.Bridges, now)
		for b := range f.Bridges {
			if e := k.bridges[b]; e != nil {
				e.Read = Traffic{}
			}
		}
	}
	return true
}

// Discarded says that the records of these names are no more.
func (k *Book) Discarded(names ...string) {
	k.taken = slices.DeleteFunc(k.taken, func(n string) bool { return slices.Contains(names, n) })
}

// Forget removes the sums of NICs that were last read before a time and of whose
// VMs gone says so. It reports how many.
func (k *Book) Forget(before time.Time, gone func(uuid.UUID) bool) (n int) {
	for nic, e := range k.entries {
		if e.At.Before(before) && gone(nic.UUID) {
			delete(k.entries, nic)
			if k.bridges[e.Bridge] == e {
				delete(k.bridges, e.Bridge)
			}
			n++
		}
	}
	return n
}

// Sum is a NIC's, zero when there is none.
func (k *Book) Sum(n NIC) Traffic {
	if e := k.entries[n]; e != nil {
		return e.Traffic
	}
	return Traffic{}
}

// Final is the last readings of counters that a hook removed, by bridge.
type Final struct {
	Boot    string             `json:"boot"`
	Bridges map[string]Traffic `json:"bridges"`
}
