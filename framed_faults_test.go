package main

// Faults that framed sessions once had, each kept from coming back.

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestAnswersFitIntoFrames: whatever a mistake is about, its answer can be read.
func TestAnswersFitIntoFrames(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		c := b.dialFrames(t).enter()
		for name, r := range map[string]string{
			"id behind a mistake":  `{"do":"list","nope":1,"id":"` + strings.Repeat("x", maxFrame-40) + `"}`,
			"id behind a mistake2": `{"do":"list","path":1,"id":"` + strings.Repeat("x", maxFrame-40) + `"}`,
			"field":                `{"do":"list","` + strings.Repeat(`\"`, maxFrame/2-100) + `":1}`,
			"field, long":          `{"do":"list","` + strings.Repeat(`x`, 4000) + `":1}`,
			"echo":                 `{"do":"echo","text":"` + strings.Repeat("\u2028", 80000) + `"}`,
			"upper":                `{"do":"upper","text":"` + strings.Repeat("ɐ", 120000) + `"}`,
		} {
			c.where = name + ": "
			c.frame(frameRequest, r)
			if o := c.rest(); len(o.raw) > maxFrame {
				t.Errorf("%s: an answer of %d bytes", name, len(o.raw))
			} else if len(o.raw) > 1000 && name != "echo" && name != "upper" {
				t.Errorf("%s: an answer of %d bytes about a mistake", name, len(o.raw))
			}
		}
	})
}

// TestPutAppendSizeOverflow: what is there and what is announced are not added past all bounds.
func TestPutAppendSizeOverflow(t *testing.T) {
	inBox(t, "", "quota_bytes = \"100KiB\"\n", func(t *testing.T, b *ftpBox) {
		b.put(t, "f", "content")
		c := b.dialFrames(t).enter()
		c.frame(frameRequest, `{"do":"put","path":"f","append":true,"size":9223372036854775807}`)
		c.frame(frameEnd, "")
		if o := c.rest(); o.opening != nil || o.Code < 500 {
			t.Error(o.raw)
		}
	})
}

// TestRemoveTopOrShare: what cannot be removed is not emptied either.
func TestRemoveTopOrShare(t *testing.T) {
	share := t.TempDir()
	os.WriteFile(filepath.Join(share, "f"), []byte("shared"), 0o644)
	inBox(t, "", fmt.Sprintf("shares = { public = { path = %q, write = true } }\n", share), func(t *testing.T, b *ftpBox) {
		b.put(t, "d/f", "content")
		c := b.dialFrames(t).enter()
		for _, p := range []string{"/", ".", "/public", "public/"} {
			c.frame(frameRequest, `{"do":"remove","path":"`+p+`","recursive":true}`)
			if o := c.rest(); o.Code != 550 {
				t.Errorf("%s: %s", p, o.raw)
			}
			if _, err := os.Stat(filepath.Join(b.home, "d/f")); err != nil {
				t.Errorf("%s was refused, and is empty now", p)
			}
			if _, err := os.Stat(filepath.Join(share, "f")); err != nil {
				t.Errorf("%s was refused, and the share is empty now", p)
			}
		}
	})
}

// TestChatStalledListener: one who stalls for longer than writeTimeout hears again, or is
// told by the end of the connection that he has missed something.
func TestChatStalledListener(t *testing.T) {
	inBox(t, "limits.idle = \"1h\"\n", "", func(t *testing.T, b *ftpBox) {
		c := b.dialFrames(t).enter().listen()
		for i := range 200 {
			b.srv.chat.say("bob", strings.Repeat("x", 990)+fmt.Sprint(i))
		}
		time.Sleep(5 * time.Minute)
		b.srv.chat.say("bob", "back?")
		start := time.Now()
		c.conn.SetReadDeadline(start.Add(2 * time.Hour))
		for {
			_, p, err := c.take(2 * time.Hour)
			if err == nil && strings.Contains(string(p), "back?") {
				return // fine: it heard it
			}
			if err != nil {
				break
			}
		}
		if d := time.Since(start); d > 5*time.Minute {
			t.Errorf("half a frame, then nothing for %v", d)
		}
	})
}

// TestWallWhileSessionsEnd is for the race detector.
func TestWallWhileSessionsEnd(t *testing.T) {
	local := filepath.Join(t.TempDir(), "s")
	b := newFTPBox(t, fmt.Sprintf("limits.data_timeout = \"15s\"\nserver.drain = \"5s\"\nlisten = { control = [\"127.0.0.1:0\"], datagram = [], http = [], local = [%q] }\n", local), "sessions = 1000\n")
	var addr net.Addr
	for _, a := range b.serveReal(t) {
		if a.Network() == "tcp" {
			addr = a
		}
	}
	op := b.dialLocal(t, local)
	op.want("220 *")
	o := op.frames().enter()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 30 {
				c := b.dialReal(t, addr)
				c.want("220 *")
				f := c.frames()
				f.frame(frameRequest, `{"do":"quit"}`)
				f.rest()
				c.bare.Close()
			}
		})
	}
	for range 100 {
		o.do(`{"do":"wall","text":"x"}`, 200, "")
	}
	wg.Wait()
}

// TestModesAreToldAlike: by list and by stat.
func TestModesAreToldAlike(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		c := b.dialFrames(t).enter()
		c.put("f", "x", "")
		c.do(`{"do":"chmod","path":"f","mode":"0040"}`, 250, "")
		if o := c.do(`{"do":"stat","path":"f"}`, 213, ""); o.Mode != "0040" {
			t.Errorf("stat tells mode %q; list %q", o.Mode, c.list("")["f"].Mode)
		}
	})
}

// TestChatC1: the other control characters, which some terminals act on.
func TestChatC1(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		c := b.dialFrames(t).enter().listen()
		b.srv.chat.say("bob", "\u009b31m")
		if m := c.heard(); strings.ContainsRune(m.Text, 0x9b) {
			t.Errorf("CSI (U+009B) is sent as it is: %q", m.Text)
		}
	})
}
