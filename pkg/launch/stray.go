package launch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
)

// EndStrays ends the responders of the VM whose directory is given that neither
// listen on its socket nor hold its lock. They come about when the directory is
// wiped: their sockets on the bridges are still open, and they would answer the
// guest beside the next one. It reads the command line of every process, so it
// is not for each start.
func (l *Launcher) EndStrays(ctx context.Context, vmDir string) error {
	keep := map[int]bool{}
	for _, find := range []func(context.Context, string) (*process, error){l.listener, l.holder} {
		p, err := find(ctx, vmDir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		keep[p.pid] = true
		if err := p.close(); err != nil {
			return fmt.Errorf("let go of process %d: %w", p.pid, err)
		}
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("list processes: %w", err)
	}
	var errs []error
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || keep[pid] || !serves(pid, vmDir) {
			continue
		}
		p, err := l.open(pid)
		if errors.Is(err, fs.ErrNotExist) {
			continue // ended meanwhile, or another program
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		l.log.Warnf("responder %d serves %s beside the one that should; it is ended", pid, vmDir)
		errs = append(errs, p.end(ctx), p.close())
	}
	return errors.Join(errs...)
}

// serves tells whether the last argument of a process is the VM's directory.
func serves(pid int, vmDir string) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	args := bytes.Split(bytes.TrimSuffix(b, []byte{0}), []byte{0})
	return len(args) > 1 && string(args[len(args)-1]) == vmDir
}
