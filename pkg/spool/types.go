// Package spool keeps the files that the programs hand each other: one
// directory per VM below the run directory with a declaration and a binding,
// replaced atomically, versioned, and one lock that serialises all that change
// the kernel. It touches files only.
package spool

import (
	"net/netip"
	"time"

	"github.com/google/uuid"
)

// DeclarationVersion is the version of the declaration file.
const DeclarationVersion = 1

// Declaration is what a hook (or the agent, for a VM that it found running)
// says of one incarnation of a VM.
type Declaration struct {
	Version    int       `json:"version"`
	UUID       uuid.UUID `json:"uuid"`
	Name       string    `json:"name"`
	Generation uint64    `json:"generation"` // one more at each prepare
	Phase      Phase     `json:"phase"`
	At         time.Time `json:"at"`      // of the last change
	Bridges    []string  `json:"bridges"` // every bridge that this incarnation made
	// Addrs and Prefixes are the VM's. With Bridges they are its claims, by which
	// Claimants finds it without reading its XML.
	Addrs    []netip.Addr   `json:"addrs,omitempty"`
	Prefixes []netip.Prefix `json:"prefixes,omitempty"`
	Forwards []string       `json:"forwards,omitempty"` // ports of the host's, for people to read
	XML      string         `json:"xml"`                // the domain's XML as libvirt gave it
	// Warnings are what was found amiss at the start, a line each.
	Warnings []string `json:"warnings,omitempty"`
}

// Phase is how far an incarnation has come.
type Phase string

// The phases. Preparing: libvirt may not list the domain yet; it counts as
// running until PrepareDeadline. Stopped: libvirt may still list it; it counts
// as gone. Released is a tombstone: it keeps a listing that was read before the
// release from bringing the VM back, and goes when a later listing lacks it.
const (
	Preparing Phase = "preparing"
	Started   Phase = "started"
	Stopped   Phase = "stopped"
	Released  Phase = "released"
)

// PrepareDeadline is how long after At a declaration in phase Preparing counts
// though libvirt does not list the domain.
const PrepareDeadline = 5 * time.Minute

// Dirs are the three directories; each can be moved by its environment
// variable, so that tests and several labs run side by side.
type Dirs struct {
	Config string // SLASH32_CONFIG_DIR, default /etc/slash32
	Run    string // SLASH32_RUN_DIR, default /run/slash32
	State  string // SLASH32_STATE_DIR, default /var/lib/slash32
}
