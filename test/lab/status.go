package lab

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/slash32/slash32/pkg/control"
)

// Status is what "slash32 status -j" says.
func (l *Lab) Status(ctx context.Context) (control.Status, error) {
	var s control.Status
	err := l.slash32JSON(ctx, &s, "status", "-j")
	return s, err
}

// Show is what "slash32 show VM -j" says.
func (l *Lab) Show(ctx context.Context, vm string) (control.VM, error) {
	var v control.VM
	err := l.slash32JSON(ctx, &v, "show", vm, "-j")
	return v, err
}

func (l *Lab) slash32JSON(ctx context.Context, into any, args ...string) error {
	out, err := l.Slash32(ctx, args...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		return fmt.Errorf("read the JSON of slash32 %v: %w", args, err)
	}
	return nil
}

// WaitOnline waits until the agent says that the VM is online.
func (l *Lab) WaitOnline(ctx context.Context, vm string) error {
	return Wait(ctx, func() error {
		v, err := l.Show(ctx, vm)
		if err == nil && (v.State != "online" || !v.Responder.Up) {
			err = fmt.Errorf("%s is %s (%s), its responder is up: %t", vm, v.State, v.Text, v.Responder.Up)
		}
		return err
	})
}
