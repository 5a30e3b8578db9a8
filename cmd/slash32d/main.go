// Command slash32d is the agent: it keeps the host's routes, policy rules and
// nftables state as the running VMs need them.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/sirupsen/logrus"

	"github.com/slash32/slash32/pkg/agent"
	"github.com/slash32/slash32/pkg/spool"
	"github.com/slash32/slash32/pkg/version"
)

func main() {
	debug := flag.Bool("debug", false, "log every step")
	responder := flag.String("responder", "", "the responder's program (default: beside this one, or in ../libexec/slash32)")
	show := flag.Bool("version", false, "print the version and exit")
	flag.Parse()
	if *show {
		fmt.Println("slash32d", version.Version)
		return
	}
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "slash32d: unexpected argument %q. Fix: slash32d takes flags only, see slash32d -help\n", flag.Arg(0))
		os.Exit(2)
	}
	log := logrus.New()
	log.SetOutput(os.Stderr)
	// The journal has the time; a terminal or a file does not.
	log.SetFormatter(&logrus.TextFormatter{DisableColors: true, FullTimestamp: true, DisableTimestamp: os.Getenv("JOURNAL_STREAM") != ""})
	if *debug {
		log.SetLevel(logrus.DebugLevel)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	err := agent.Run(ctx, agent.Options{
		Dirs:      spool.DirsFromEnv(os.Getenv),
		Responder: responderPath(*responder),
		Log:       log,
		Reload:    reload,
	})
	if err != nil {
		log.Errorf("slash32d: %v", err)
		os.Exit(1)
	}
}

// responderPath is the flag's value, else SLASH32_RESPONDER, else the first
// place where the program is.
func responderPath(flagged string) string {
	if flagged != "" {
		return flagged
	}
	if p := os.Getenv("SLASH32_RESPONDER"); p != "" {
		return p
	}
	const name = "slash32-responder"
	self, err := os.Executable()
	if err != nil {
		return name
	}
	dir := filepath.Dir(self)
	beside := filepath.Join(dir, name)
	if _, err := os.Stat(beside); err == nil {
		return beside
	}
	return filepath.Join(dir, "..", "libexec", "slash32", name)
}
