package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

// unitDir is the directory whose subdirectories the unit serves.
const unitDir = "/run/slash32/vm"

// errNoSystemd says that systemd can't start this responder; a process can.
var errNoSystemd = errors.New("not by systemd")

func unitName(id fmt.Stringer) string { return "slash32-responder@" + id.String() + ".service" }

// manager connects to systemd itself, without the message bus, which may be
// down or not installed. The connection lives as long as ctx at most.
func manager(ctx context.Context, vmDir string) (*dbus.Conn, error) {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return nil, fmt.Errorf("%w: it does not run here", errNoSystemd)
	}
	if dir := filepath.Dir(filepath.Clean(vmDir)); dir != unitDir {
		return nil, fmt.Errorf("%w: its unit serves %s, not %s", errNoSystemd, unitDir, dir)
	}
	c, err := dbus.NewSystemdConnectionContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: connect: %w", errNoSystemd, err)
	}
	return c, nil
}

func startUnit(ctx context.Context, vmDir string, id fmt.Stringer) error {
	c, err := manager(ctx, vmDir)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := job(ctx, id, c.StartUnitContext); err != nil {
		return err
	}
	if ask(ctx, vmDir) == nil {
		return nil
	}
	// It was running already, for a directory that has been wiped since.
	return job(ctx, id, c.RestartUnitContext)
}

// stopUnit stops the unit. One that is not loaded is stopped.
func stopUnit(ctx context.Context, vmDir string, id fmt.Stringer) error {
	c, err := manager(ctx, vmDir)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := job(ctx, id, c.StopUnitContext); err != nil {
		return err
	}
	// A failed unit would stay in systemd's list for each VM that ever was.
	if err := c.ResetFailedUnitContext(ctx, unitName(id)); err != nil && !isNoSuchUnit(err) {
		return fmt.Errorf("clear %s: %w", unitName(id), err)
	}
	return nil
}

// job runs a job on the VM's unit and waits for it to end.
func job(ctx context.Context, id fmt.Stringer, run func(context.Context, string, string, chan<- string) (int, error)) error {
	unit := unitName(id)
	done := make(chan string, 1)
	if _, err := run(ctx, unit, "replace", done); isNoSuchUnit(err) {
		return fmt.Errorf("%w: no unit slash32-responder@.service", errNoSystemd)
	} else if err != nil {
		return fmt.Errorf("ask for %s: %w", unit, err)
	}
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("job of %s: %s. Fix: journalctl -u %s says why", unit, result, unit)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for %s: %w. Fix: journalctl -u %s may say why", unit, ctx.Err(), unit)
	}
}

func isNoSuchUnit(err error) bool {
	var e godbus.Error
	return errors.As(err, &e) && e.Name == "org.freedesktop.systemd1.NoSuchUnit"
}
