package lab

import (
	"context"
	"fmt"
	"strings"
)

// Virsh runs virsh on the hypervisor and returns what it printed.
func (l *Lab) Virsh(ctx context.Context, args ...string) (string, error) {
	out, err := l.virsh(ctx, "", args...)
	return strings.TrimSpace(out), err
}

func (l *Lab) virsh(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := l.HV.Command(ctx, append([]string{"virsh", "-q", "-c", "qemu:///system"}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	return run(cmd, "virsh "+strings.Join(args, " "))
}

// Define makes the domain known to libvirt.
func (l *Lab) Define(ctx context.Context, d Domain) error {
	xml, err := d.XML()
	if err != nil {
		return err
	}
	_, err = l.virsh(ctx, xml, "define", "/dev/stdin")
	return err
}

// Run defines the domain and starts it: a cheap one paused.
func (l *Lab) Run(ctx context.Context, d Domain) error {
	if err := l.Define(ctx, d); err != nil {
		return err
	}
	args := []string{"start", d.Name}
	if d.Cheap {
		args = append(args, "--paused")
	}
	_, err := l.Virsh(ctx, args...)
	return err
}

// Remove destroys the domain, if it runs, and makes libvirt forget it.
func (l *Lab) Remove(ctx context.Context, name string) error {
	state, err := l.Virsh(ctx, "domstate", name)
	if err != nil {
		return err
	}
	if state != "shut off" && state != "crashed" {
		if _, err := l.Virsh(ctx, "destroy", name); err != nil {
			return err
		}
	}
	_, err = l.Virsh(ctx, "undefine", name, "--nvram")
	return err
}

// waitLibvirtd waits until libvirtd answers.
func (l *Lab) waitLibvirtd(ctx context.Context) error {
	err := Wait(ctx, func() error {
		_, err := l.Virsh(ctx, "list")
		return err
	})
	if err != nil {
		return fmt.Errorf("libvirtd does not answer: %w", err)
	}
	return nil
}

// KillLibvirtd kills libvirtd (-9) and waits until the new one answers.
func (l *Lab) KillLibvirtd(ctx context.Context) error {
	pid, err := l.HV.ReadFile("/run/libvirtd.pid")
	if err != nil {
		return err
	}
	if _, err := l.HV.Exec(ctx, "kill", "-9", strings.TrimSpace(pid)); err != nil {
		return err
	}
	return l.waitLibvirtd(ctx)
}

// KillQEMU kills the domain's QEMU (-9).
func (l *Lab) KillQEMU(ctx context.Context, name string) error {
	pid, err := l.HV.ReadFile("/run/libvirt/qemu/" + name + ".pid")
	if err != nil {
		return err
	}
	_, err = l.HV.Exec(ctx, "kill", "-9", strings.TrimSpace(pid))
	return err
}
