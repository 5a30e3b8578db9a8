// Command slash32 shows what the agent does for the VMs of this host and checks
// their annotations.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/slash32/slash32/pkg/cli"
	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/control"
	"github.com/slash32/slash32/pkg/doctor"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/kernel"
	"github.com/slash32/slash32/pkg/plan"
	"github.com/slash32/slash32/pkg/spool"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	dirs := spool.DirsFromEnv(os.Getenv)
	code := cli.Run(ctx, cli.Env{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Dirs: dirs,
		Now:  time.Now,
		Call: func(ctx context.Context, r control.Request) (control.Reply, error) {
			return control.Call(ctx, dirs.Socket(), r)
		},
		Facts: func(ctx context.Context, links ...string) (plan.Facts, error) {
			return of(func(k *kernel.Kernel) (plan.Facts, error) { return k.Facts(ctx, links...) })
		},
		Listeners: func(ctx context.Context) ([]intent.Listener, error) {
			return of(func(k *kernel.Kernel) ([]intent.Listener, error) { return k.Listeners(ctx) })
		},
		Doctor: examine,
	}, os.Args[1:])
	stop()
	os.Exit(code)
}

func examine(ctx context.Context, s control.Status, c config.Config) ([]cli.Finding, error) {
	f, err := of(func(k *kernel.Kernel) (doctor.Facts, error) {
		return doctor.Reader{Kernel: k}.Read(ctx, doctor.Guests(s), c)
	})
	if err != nil {
		return nil, err
	}
	var found []cli.Finding
	for _, x := range doctor.Examine(f) {
		found = append(found, cli.Finding{Problem: x.Problem, Impact: string(x.Impact)})
	}
	return found, nil
}

// of is what ask reads of the kernel.
func of[T any](ask func(*kernel.Kernel) (T, error)) (T, error) {
	log := logrus.New()
	log.SetOutput(io.Discard) // the error says it
	k, err := kernel.New(log)
	if err != nil {
		var none T
		return none, err
	}
	defer k.Close()
	return ask(k)
}
