// One thread serves: what follows the machine's or cgroup's size is not needed.
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Command slash32-responder answers one VM's ARP, Neighbour Discovery, DHCPv4
// and DHCPv6 on the VM's own bridges.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"github.com/sirupsen/logrus"

	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/responder"
	"github.com/slash32/slash32/pkg/version"
	"github.com/slash32/slash32/pkg/vmlink"
)

// stateDir is SLASH32_STATE_DIR, as everywhere; package spool would bring much
// that a responder does without.
func stateDir() string {
	if d := os.Getenv("SLASH32_STATE_DIR"); d != "" {
		return d
	}
	return "/var/lib/slash32"
}

func main() { os.Exit(run(os.Args[1:], os.Stderr)) }

func run(args []string, stderr io.Writer) int {
	flags := flag.NewFlagSet("slash32-responder", flag.ContinueOnError)
	flags.SetOutput(stderr)
	account := flags.String("user", marks.User, "account to serve as once the sockets are open")
	unlimited := flags.Bool("unlimited", false, "answer every request, however many a second")
	showVersion := flags.Bool("version", false, "print the version and exit")
	flags.Usage = func() {
		fmt.Fprintln(stderr, "usage: slash32-responder [-user NAME] [-unlimited] VMDIR")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if *showVersion {
		fmt.Println("slash32-responder", version.Version)
		return 0
	}
	if flags.NArg() != 1 {
		flags.Usage()
		return 2
	}
	// Serving allocates nothing. What control requests leave behind may come to
	// a few hundred KiB, not to the 4 MiB of the default.
	debug.SetGCPercent(25)
	log := logrus.New()
	// Bare of its type, or the first line would ask the kernel whether it is a
	// terminal, which the system call filter does not allow.
	log.SetOutput(struct{ io.Writer }{stderr})
	limits := responder.DefaultLimits()
	if *unlimited {
		limits = responder.Limits{}
	}
	// SIGTERM ends the process as the kernel does it. There is nothing to put in
	// order (the guest must not notice), and a handler would cost every VM two
	// threads.
	err := vmlink.Run(context.Background(), vmlink.Options{
		Dir: flags.Arg(0), State: stateDir(), User: *account, Limits: limits, Notify: os.Getenv("NOTIFY_SOCKET"), Log: log,
	})
	if err != nil {
		log.Error(err)
		return 1
	}
	return 0
}
