// Package userhook runs the user's program when a delegated prefix comes or goes.
// It starts processes and keeps one file of what it has told.
package userhook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/renameio/v2"
	"github.com/google/uuid"
	"github.com/sirupsen/logrus"

	"github.com/slash32/slash32/pkg/mac"
)

const (
	// Timeout is how long the program may run.
	Timeout = 10 * time.Second
	// maxOutput is how much of what it prints is logged, in bytes.
	maxOutput = 1024
	// retry is the pause after the file could not be written.
	retry = 5 * time.Second
)

// Prefix is a prefix that is routed to a guest. It is comparable.
type Prefix struct {
	VM      uuid.UUID    `json:"vm"`
	Name    string       `json:"name"`
	Network string       `json:"network"`
	MAC     mac.Addr     `json:"mac"`
	Bridge  string       `json:"bridge"`
	Prefix  netip.Prefix `json:"prefix"`
	Via     netip.Addr   `json:"via"` // next hop, link-local
}

// Runner tells the program of each change once, in order, one at a time. What
// comes and goes while it is busy is not told. Fill in the exported fields, then
// Run it.
type Runner struct {
	File string // what was told; it is lost with the host's routes, at a reboot
	Log  logrus.FieldLogger

	once sync.Once
	wake chan struct{}

	mu   sync.Mutex
	path string
	want []Prefix
	set  bool // want is known
}

func (r *Runner) prepare() { r.once.Do(func() { r.wake = make(chan struct{}, 1) }) }

// Set says which program is to be told ("": none) of which prefixes. It does not
// wait.
func (r *Runner) Set(path string, now []Prefix) {
	r.prepare()
	r.mu.Lock()
	same := r.set && r.path == path && slices.Equal(r.want, now)
	r.path, r.want, r.set = path, slices.Clone(now), true
	r.mu.Unlock()
	if same {
		return
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run runs programs until ctx ends, and then returns nil once the one under way
// has ended: the next Run goes on there.
func (r *Runner) Run(ctx context.Context) error {
	r.prepare()
	told, err := r.read()
	if err != nil {
		r.Log.Warnf("%v; the program is told of every prefix again", err)
	}
	pause := time.NewTimer(retry)
	defer pause.Stop()
	unsaved := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-pause.C:
			if unsaved && r.write(told) == nil {
				unsaved = false
			}
		case <-r.wake:
		}
		for {
			path, p, add, ok := r.next(told)
			if !ok || ctx.Err() != nil {
				break
			}
			if add {
				told = append(told, p)
			} else {
				told = slices.DeleteFunc(told, func(o Prefix) bool { return o == p })
			}
			// Noted first: a program that makes the host crash is not run again and
			// again.
			if err := r.write(told); err != nil {
				if !unsaved {
					r.Log.Warnf("%v; until it can be, a restart of the agent tells of some prefixes again", err)
				}
				unsaved = true
			} else {
				unsaved = false
			}
			if path != "" {
				r.exec(ctx, path, p, add)
			}
		}
		if unsaved {
			pause.Reset(retry)
		}
	}
}

// next is the first change that was not told: removals come first, since a prefix
// may have gone from one VM to another.
func (r *Runner) next(told []Prefix) (path string, p Prefix, add, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.set {
		return "", Prefix{}, false, false
	}
	for _, p := range told {
		if !slices.Contains(r.want, p) {
			return r.path, p, false, true
		}
	}
	if r.path == "" {
		return "", Prefix{}, false, false // told when there is a program
	}
	for _, p := range r.want {
		if !slices.Contains(told, p) {
			return r.path, p, true, true
		}
	}
	return "", Prefix{}, false, false
}

// exec runs the program. What becomes of it is its own affair; a failure is said.
func (r *Runner) exec(ctx context.Context, path string, p Prefix, add bool) {
	action := "remove"
	if add {
		action = "add"
	}
	// It is not ended half-way because the agent is.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), Timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = append(environ(os.Environ()), p.environ(action)...)
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second // for what it left behind with its output open
	out := &head{limit: maxOutput}
	cmd.Stdout, cmd.Stderr = out, out
	log := r.Log.WithFields(logrus.Fields{"vm": p.Name, "prefix": p.Prefix.String(), "via": p.Via.String(), "action": action})
	err := cmd.Run()
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("it still ran after %v and was ended", Timeout)
	}
	text := strings.TrimSpace(out.buf.String())
	if err != nil {
		log.Warnf("hooks.prefix: %s: %v: %q. Fix: run it by hand with the variables of slash32.yaml(5)", path, err, text)
		return
	}
	log.Infof("hooks.prefix: %s has run: %q", path, text)
}

// environ keeps of the agent's environment what a program needs.
func environ(all []string) []string {
	var out []string
	for _, v := range all {
		name, _, _ := strings.Cut(v, "=")
		if name == "PATH" || name == "LANG" || strings.HasPrefix(name, "LC_") || name == "HOME" || name == "TZ" {
			out = append(out, v)
		}
	}
	return out
}

// environ are the variables that the program is told by. Values of the
// annotation's are valid names.
func (p Prefix) environ(action string) []string {
	return []string{
		"SLASH32_ACTION=" + action,
		"SLASH32_PREFIX=" + p.Prefix.String(),
		"SLASH32_NEXT_HOP=" + p.Via.String(),
		"SLASH32_BRIDGE=" + p.Bridge,
		"SLASH32_MAC=" + p.MAC.String(),
		"SLASH32_NETWORK=" + p.Network,
		"SLASH32_VM=" + strings.ReplaceAll(p.Name, "\x00", ""),
		"SLASH32_UUID=" + p.VM.String(),
	}
}

// head keeps the beginning of what is written to it.
type head struct {
	buf   bytes.Buffer
	limit int
}

func (h *head) Write(b []byte) (int, error) {
	h.buf.Write(b[:min(len(b), h.limit-h.buf.Len())])
	return len(b), nil
}

func (r *Runner) read() ([]Prefix, error) {
	b, err := os.ReadFile(r.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what hooks.prefix was told: %w", err)
	}
	var told []Prefix
	if err := json.Unmarshal(b, &told); err != nil {
		return nil, fmt.Errorf("read what hooks.prefix was told: %s: %w", r.File, err)
	}
	return told, nil
}

func (r *Runner) write(told []Prefix) error {
	b, err := json.Marshal(told)
	if err == nil {
		err = renameio.WriteFile(r.File, b, 0o600, renameio.WithTempDir(filepath.Dir(r.File)))
	}
	if err != nil {
		return fmt.Errorf("write what hooks.prefix was told: %w", err)
	}
	return nil
}
