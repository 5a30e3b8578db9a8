// Package launch starts, stops and watches the responder of a VM: as a systemd
// unit where systemd runs, else as a detached process.
package launch

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/sirupsen/logrus"
)

// The modes. Auto is systemd where it runs, has our unit and the VM's directory
// is the one that the unit names; else process.
const (
	Auto    = "auto"
	Systemd = "systemd"
	Process = "process"
)

// Times of waiting. readyStep is between two questions whether a responder is
// up, askTimeout bounds one question.
const (
	readyStep  = 2 * time.Millisecond
	askTimeout = time.Second
)

// Launcher starts responders. It may be used from several goroutines; several
// Launchers may look after the same VMs.
type Launcher struct {
	mode   string
	binary string
	log    logrus.FieldLogger

	mu       sync.Mutex
	children map[string]int // by VM's directory: the process that this Launcher started
}

// New makes a Launcher. binary is the absolute path of slash32-responder; it is
// used in process mode, the unit names its own.
func New(mode, binary string, log logrus.FieldLogger) *Launcher {
	return &Launcher{mode: mode, binary: binary, log: log, children: map[string]int{}}
}

// Start makes sure that the responder of the VM whose directory is given runs;
// the directory's base is the VM's UUID. When one answers already nothing is
// done. In systemd mode it returns when the responder is ready, in process mode
// at once: see WaitReady.
func (l *Launcher) Start(ctx context.Context, vmDir string) error {
	id, err := uuid.Parse(filepath.Base(vmDir))
	if err != nil {
		return fmt.Errorf("start a responder in %s: the directory's name is not a UUID: %w", vmDir, err)
	}
	if ask(ctx, vmDir) == nil {
		return nil
	}
	switch l.mode {
	case Process:
	case Auto, Systemd:
		err := startUnit(ctx, vmDir, id)
		if l.mode == Auto && errors.Is(err, errNoSystemd) {
			break
		}
		if err != nil {
			return fmt.Errorf("start the responder of %s by systemd: %w", id, err)
		}
		return nil
	default:
		return fmt.Errorf("start the responder of %s: no mode %q; it is auto, systemd or process", id, l.mode)
	}
	if err := l.startProcess(vmDir); err != nil {
		return fmt.Errorf("start the responder of %s: %w", id, err)
	}
	return nil
}

// Stop ends the responder of the VM whose directory is given, however it was
// started, and returns when it is no more. That none runs is no error.
func (l *Launcher) Stop(ctx context.Context, vmDir string) error {
	id, err := uuid.Parse(filepath.Base(vmDir))
	if err != nil {
		return fmt.Errorf("stop the responder in %s: the directory's name is not a UUID: %w", vmDir, err)
	}
	if l.mode != Process || l.inUnit(ctx, vmDir, id) {
		if err := stopUnit(ctx, vmDir, id); err != nil && !errors.Is(err, errNoSystemd) {
			return fmt.Errorf("stop the responder of %s by systemd: %w", id, err)
		}
	}
	if err := l.stopProcess(ctx, vmDir); err != nil {
		return fmt.Errorf("stop the responder of %s: %w", id, err)
	}
	return nil
}

// WaitReady returns when the responder answers on its socket. It fails when ctx
// ends, or at once when a process that this Launcher started has died; the error
// then has the last line of its log.
func (l *Launcher) WaitReady(ctx context.Context, vmDir string) error {
	tick := time.NewTicker(readyStep)
	defer tick.Stop()
	for {
		err := ask(ctx, vmDir)
		if err == nil {
			return nil
		}
		if died, why := l.died(vmDir); died {
			// It may have been beaten by another that is up by now.
			if ask(ctx, vmDir) == nil {
				return nil
			}
			return fmt.Errorf("the responder ended before it was ready (%s): %s", why, lastLine(logFile(vmDir)))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the responder is not ready: %w (%w): %s", ctx.Err(), err, lastLine(logFile(vmDir)))
		case <-tick.C:
		}
	}
}

func socket(vmDir string) string  { return filepath.Join(vmDir, "responder.sock") }
func logFile(vmDir string) string { return filepath.Join(vmDir, "responder.log") }

// ask returns nil when the responder answers "status" with a JSON object.
func ask(ctx context.Context, vmDir string) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket(vmDir))
	if err != nil {
		return fmt.Errorf("connect to the responder: %w", err)
	}
	defer func() { _ = c.Close() }()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	if _, err := c.Write([]byte("status\n")); err != nil {
		return fmt.Errorf("ask the responder for its status: %w", err)
	}
	first, err := bufio.NewReader(c).ReadByte()
	switch {
	case err != nil:
		return fmt.Errorf("read the responder's status: %w", err)
	case first != '{':
		return fmt.Errorf("read the responder's status: it begins with %q, not with a JSON object", first)
	}
	return nil
}

// lastLine is the last line of a responder's log, cut at 512 bytes.
func lastLine(path string) string {
	const limit = 512
	f, err := os.Open(path)
	if err != nil {
		return "it has no log"
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return "its log cannot be read: " + err.Error()
	}
	b := make([]byte, 2*limit)
	n, _ := f.ReadAt(b, max(0, st.Size()-int64(len(b)))) // a short read is a short log
	line := lastOf(b[:n])
	if line == "" {
		return "its log says nothing"
	}
	return line[max(0, len(line)-limit):]
}
