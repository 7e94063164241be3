package main

// Nothing of a command outlives whoever it runs for: clients that leave in every way
// there is, kicks, and the end of the daemon, against programs that do not want to end.

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// forest is a command line that starts sleepers in all the ways there are to get away;
// none of them heeds TERM, and the last words are "up". It makes forestSleepers processes
// that have mark as an argument.
func forest(mark string) string {
	return strings.ReplaceAll(`trap "" TERM HUP INT
sleep MARK & # forked
(sleep MARK &) # forked twice
setsid sleep MARK & # out of the session
(setsid sh -c 'trap "" TERM HUP; (sleep MARK &); exec sleep MARK' MARK </dev/null >/dev/null 2>&1 &) # all of it
(env -i setsid sh -c 'exec sleep MARK' >/dev/null 2>&1 &)
echo up
sleep MARK`, "MARK", mark)
}

const forestSleepers = 7

// plant starts a forest and waits until it is complete.
func (c *execClient) plant() (mark string) {
	c.t.Helper()
	mark = newMark()
	c.sh(forest(mark), `,"stdin":true`)
	c.until("up\n")
	for end := time.Now().Add(testTimeout); len(sleepers(mark)) < forestSleepers; {
		if time.Now().After(end) {
			c.fatalf("%d sleepers of %d", len(sleepers(mark)), forestSleepers)
		}
	}
	return mark
}

// sleepers are the marked processes that have become sleep.
func sleepers(mark string) []int {
	return slices.DeleteFunc(marked(mark), func(pid int) bool {
		args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		return !bytes.HasPrefix(args, []byte("sleep\x00"))
	})
}

func TestExecEndsWithItsClient(t *testing.T) {
	b := newExecBox(t, "", "")
	for _, e := range []struct {
		way, how string
		leave    func(t *testing.T, c *execClient)
	}{
		{"plain", "closes", func(t *testing.T, c *execClient) { c.conn.Close() }},
		{"explicit TLS", "closes", func(t *testing.T, c *execClient) { c.conn.Close() }},
		{"implicit TLS", "cuts", func(t *testing.T, c *execClient) { c.bare.Close() }},
		{"local", "closes", func(t *testing.T, c *execClient) { c.conn.Close() }},
		{"plain", "resets", func(t *testing.T, c *execClient) {
			c.bare.(*net.TCPConn).SetLinger(0)
			c.bare.Close()
		}},
		{"explicit TLS", "resets", func(t *testing.T, c *execClient) {
			c.bare.(*net.TCPConn).SetLinger(0)
			c.bare.Close()
		}},
		// Who exec runs for takes the answer too: half a client is none.
		{"plain", "half closes", func(t *testing.T, c *execClient) { c.bare.(*net.TCPConn).CloseWrite() }},
		{"local", "half closes", func(t *testing.T, c *execClient) { c.bare.(*net.UnixConn).CloseWrite() }},
		{"plain", "is killed", func(t *testing.T, c *execClient) {
			f, err := c.bare.(*net.TCPConn).File()
			if err != nil {
				t.Fatal(err)
			}
			holder := exec.Command("sleep", "86400")
			holder.Stdin = f
			if err := holder.Start(); err != nil {
				t.Fatal(err)
			}
			f.Close()
			c.bare.Close()
			holder.Process.Kill()
			holder.Wait()
		}},
		{"plain", "cancels", func(t *testing.T, c *execClient) { c.frame(frameCancel, "") }},
		{"local", "sends nonsense", func(t *testing.T, c *execClient) { c.frame(frameSignal, "no JSON") }},
		// Its input is in the way of anything that it could say.
		{"explicit TLS", "closes behind more than anybody takes", func(t *testing.T, c *execClient) {
			c.conn.SetWriteDeadline(time.Now().Add(goneLook))
			for err := error(nil); err == nil; {
				_, err = c.conn.Write(appendFrame(nil, frameData, make([]byte, maxFrame)))
			}
			c.conn.Close()
		}},
		{"plain", "closes behind much input", func(t *testing.T, c *execClient) {
			c.frame(frameData, strings.Repeat("x", stdinAhead))
			c.frame(frameData, strings.Repeat("x", 64<<10)) // a pipe
			c.frame(frameData, strings.Repeat("x", 64<<10)) // what nobody has read yet
			c.conn.Close()
		}},
	} {
		t.Run(e.way+" "+e.how, func(t *testing.T) {
			c := b.enter(t, e.way)
			mark := c.plant()
			e.leave(t, c)
			wantUnmarked(t, mark, execGone+stuckPing+2*goneLook)
		})
	}
	waitUntil(t, "all are logged", func() bool { return strings.Count(b.log.String(), "command=shell") == 13 })
	if got := strings.Count(b.log.String(), "result=client_gone"); got != 12 {
		t.Errorf("%d of 12 clients are gone by the log\n%s", got, b.log)
	}
	if got := b.metric(t, "berth_commands_total", "shell", "client_gone"); got != 12 {
		t.Errorf("berth_commands_total: %v", got)
	}
	// What a command leaves behind that ends by itself goes too.
	c := b.enter(t, "plain")
	mark := newMark()
	r := c.runSh("setsid sh -c 'trap \"\" TERM; echo up; exec sleep " + mark + "' & until pgrep -f 'sleep " + mark + "$' >/dev/null; do :; done; echo done")
	if !r.is(226, "exited", 0, "") {
		t.Errorf("a command that leaves something behind: %s", r)
	}
	wantUnmarked(t, mark, 0)
}

// A client is heard behind all the stdin that is held for a command, in frames of any size.
func TestExecCancelledBehindInput(t *testing.T) {
	b := newExecBox(t, "", "")
	for _, way := range execWays {
		c := b.enter(t, way)
		mark := newMark()
		c.sh("echo up; exec sleep "+mark, `,"stdin":true`)
		c.until("up\n")
		for range (stdinAhead - stdinPiece) / 128 { // nobody reads it
			c.frame(frameData, strings.Repeat("x", 128))
		}
		c.frame(frameCancel, "")
		if r := c.result(); !r.is(426, "cancelled", -1, "TERM") {
			t.Errorf("%s: %s", way, r)
		}
		wantUnmarked(t, mark, 0)
		if r := c.runSh("echo on"); string(r.out) != "on\n" {
			t.Errorf("%s: behind it: %s", way, r)
		}
	}
}

// The operator ends sessions one by one; nothing of their commands is left.
func TestExecEndsWithAKick(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("the operator is root")
	}
	b := newExecBox(t, "", "")
	c := b.enter(t, "plain")
	mark := c.plant()
	var id uint64
	b.srv.mu.Lock()
	for n := range b.srv.sessions {
		id = n
	}
	b.srv.mu.Unlock()
	op := b.enter(t, "local")
	op.frame(frameRequest, fmt.Sprintf(`{"do":"kick","session":%d}`, id))
	if _, p, err := op.take(); err != nil || !bytes.Contains(p, []byte(`"code":2`)) {
		t.Fatalf("kick: %s, %v", p, err)
	}
	wantUnmarked(t, mark, execGone)
}

func TestExecEndsWithTheDaemon(t *testing.T) {
	for _, e := range []struct {
		name   string
		config string
		end    func(p *process)
	}{
		{"drain", "server.drain = \"100ms\"\n", func(p *process) { p.signal(syscall.SIGTERM) }},
		{"second SIGTERM", "server.drain = \"5m\"\n", func(p *process) {
			p.signal(syscall.SIGTERM)
			p.logged("draining")
			p.signal(syscall.SIGTERM)
		}},
	} {
		t.Run(e.name, func(t *testing.T) {
			p, _ := execDaemon(t, e.config)
			c := p.exec()
			mark := c.plant()
			e.end(p)
			p.ended(exitOK)
			wantUnmarked(t, mark, execGone)
		})
	}
}

// Two berths on one machine do not take each other's programs for their own.
func TestLaunchersLeaveEachOtherAlone(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out, more strings.Builder
	started := make(chan struct{})
	long, short := newShProgram(t, "exec sleep 86400", &out), newShProgram(t, "true", &more)
	long.io.started = func() { close(started) }
	over := make(chan programResult, 1)
	go func() { over <- long.run(ctx) }()
	<-started
	short.run(t.Context())
	select {
	case r := <-over:
		t.Fatalf("another launcher has ended it: %+v", r)
	default:
	}
	cancel()
	if r := <-over; r.reason != programCancelled {
		t.Errorf("%+v", r)
	}
}

// TestNoNeedlessPing: a request that is short gets its answer and nothing else.
func TestNoNeedlessPing(t *testing.T) {
	b := newFTPBox(t, realListen+"exec.runner = \"unix:/no/such/runner\"\n", "shell = true\nsessions = 30\n")
	addr := b.serveReal(t)[0]
	for range 20 {
		c := b.dialReal(t, addr).login().execFrames()
		c.sh("true", "")
		if kind, p, err := readFrame(c.r, nil); err != nil || kind != frameAnswer {
			t.Fatalf("%s %q, %v", kind, p, err)
		}
	}
}
