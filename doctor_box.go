// doctor_box.go is what berth doctor looks at of berth's own: configuration, files and
// who may do what with them, the certificate, quotas against the disk. It is apart from
// doctor_system.go, which asks the machine and knows no users.

package main

import (
	"bytes"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// countNames and countTime bound the count of all homes together without --deep.
	countNames = 200_000
	countTime  = 10 * time.Second
	// stagingOld is when a staging file counts as left over: sweeps are far more often.
	stagingOld = 24 * time.Hour
	// diskLow is what part of a disk is little: ext4 keeps as much for root.
	diskLow = 20
	// expiryWarn is when a certificate should have been renewed: certbot does it 30 days
	// before its end.
	expiryWarn = 21 * 24 * time.Hour
	rsaWeak    = 2048 // below it nobody signs today

	mayRead  = unix.R_OK | unix.X_OK
	mayWrite = mayRead | unix.W_OK
)

// --- configuration ---

// configuration is all that berth check finds, and loads what the other checks need.
func (d *doctor) configuration() {
	d.loadUnits()
	d.data, _ = readConfigBytes(d.path, maxConfigFile)
	cfg, errs := checkConfig(d.path)
	if len(errs) > 0 && !d.unseen("config", d.path+", and what depends on it", unix.Access(d.path, unix.R_OK)) {
		d.mistakes("config", errs)
	}
	if cfg == nil {
		return
	}
	d.cfg, d.wrong = cfg, errs
	if len(errs) > 0 {
		left := ""
		for i, g := range boxGroups {
			if g, _, _ = cutText(g, ":"); !d.looks(i) {
				left += ", " + g
			}
		}
		if left != "" {
			d.say(levelNote, "config.rest|not looked at is what hangs on what is wrong: $1|berth check$c", left[2:])
		}
	}
	d.findDaemon()
	if errs.has("server") {
		return
	}
	dir := cfg.Server.UsersDir
	us, err := loadUsers(dir, cfg.Server.StateDir, slog.New(slog.DiscardHandler))
	if d.hidden = d.unseen("users", dir, unix.Access(dir, mayRead)); d.hidden {
		return
	}
	set, _ := us.readAll() // those that are right
	d.users = set.sorted()
	var list configErrors
	if errors.As(err, &list) {
		d.mistakes("users", list)
	}
	if len(errs) == 0 && errors.As(checkTogether(cfg, d.users), &list) {
		d.mistakes("users", list)
	}
	n := len(d.users)
	if d.counts[levelFail] == 0 {
		d.say(levelOK, "config|$1 is right, with $2 "+plural(n, "user"), d.path, itoa(n))
	}
	if n == 0 && err == nil {
		d.say(levelNote, "users.none|nobody can log in: there are no users in $1|berth user add NAME$c", dir)
	}
	for _, u := range d.users {
		if u.WhenFull == "rotate" && u.limit() == (quota{}) {
			d.say(levelNote, `users.rotate|user $1: when_full = "rotate" does nothing without quota_bytes or quota_files|berth user set $1 --quota 2GiB$c`, u.Name)
		}
	}
	for _, note := range commandNotes(cfg, d.users, d.daemon.uid == 0 && !errs.has("exec")) {
		d.advice(levelNote, "commands", note, "")
	}
}

// advice is a finding whose text ends with what would be right, behind its last semicolon.
func (d *doctor) advice(l level, check, text, more string) {
	what, remedy := text, ""
	if i := strings.LastIndex(text, "; "); i > 0 {
		what, remedy = text[:i], text[i+2:]
	}
	d.say(l, check+"|$1|$2|$3", what, remedy, more)
}

// mistakes are errors that name file, line and what would be right.
func (d *doctor) mistakes(check string, errs configErrors) {
	for _, e := range errs {
		if d.unseen(check, e.File, unix.Access(e.File, unix.R_OK)) {
			continue // it is not wrong for who may read it
		}
		text, place := e.Error(), "edit "+shellQuote(e.File)
		if e.Line > 0 {
			place += "   line " + itoa(e.Line)
		} else if do, ok := strings.CutSuffix(text, " it"); ok { // as chmod 600 it
			text, place = do+" "+shellQuote(e.File), ""
		} else if _, err := os.Stat(e.File); err != nil {
			place = "touch " + shellQuote(e.File)
		}
		d.advice(levelFail, check, text, place)
	}
}

// --- files ---

// checkFiles looks at who owns what, in the name of the daemon's user.
func (d *doctor) checkFiles() {
	p := &d.daemon
	s := d.cfg.Server
	d.say(levelOK, "daemon.user|the daemon's user is $1: $2", p.name, p.how)
	d.directory("state_dir", s.StateDir, mayWrite)
	d.directory("users_dir", s.UsersDir, mayRead)
	d.file("config", d.path, 0o022)
	good, disabled := 0, 0
	for _, u := range d.users {
		d.file("users", joinPath(s.UsersDir, u.Name+userSuffix), 0o037)
		if u.Disabled { // his disk may be unmounted
			disabled++
			continue
		}
		want := uint32(mayRead)
		if u.can(permWrite) {
			want = mayWrite
		}
		fine := d.reaches("home", u.Name, u.Home, want)
		for _, share := range u.Shares {
			want := uint32(mayRead)
			if share.Write {
				want = mayWrite
			}
			fine = d.reaches("share", u.Name, share.Path, want) && fine
		}
		if fine {
			good++
		}
	}
	if good > 0 {
		d.say(levelOK, "homes|$1 of $2 homes can be used by $3", itoa(good), itoa(len(d.users)-disabled), p.name)
	}
}

// file is one that the daemon has to read and that nobody else may change, or read.
func (d *doctor) file(check, path string, never uint32) {
	p := &d.daemon
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		d.unseen(check, path, err)
		return
	}
	mode := strconv.FormatUint(uint64(st.Mode&0o7777), 8)
	switch {
	case st.Mode&never&0o004 != 0:
		d.say(levelFail, check+".mode|$1: mode $2 lets everybody read it|chmod o=,g-w %1", path, mode)
	case st.Mode&never != 0:
		d.say(levelWarn, check+".mode|$1: mode $2 lets others change it|chmod go-w %1", path, mode)
	}
	at, err := p.barred(path, unix.R_OK)
	what := check + ".readable|$1: the daemon's user $2 may not read it: $3: $4"
	switch {
	case at == "":
		return
	case at != path:
		what += "|chmod o+x %3"
	case p.gid == 0 || int(st.Gid) == p.gid:
		what += "|chmod g+r %1"
	default:
		what += "|chgrp $5 %1 && chmod g+r %1"
	}
	d.say(levelFail, what, path, p.name, at, err.Error(), itoa(p.gid))
}

// directory is one of berth's own, which only he and root may write to.
func (d *doctor) directory(check, dir string, want uint32) {
	p := &d.daemon
	if !d.reaches(check, "", dir, want) {
		return
	}
	var st unix.Stat_t
	if unix.Stat(dir, &st) == nil && (st.Mode&0o002 != 0 || st.Mode&0o020 != 0 && int(st.Gid) != p.gid && st.Gid != 0) {
		d.say(levelWarn, check+".mode|$1: mode $2 lets others than $3 change it|chmod go-w %1", dir, strconv.FormatUint(uint64(st.Mode&0o7777), 8), p.name)
		return
	}
	d.say(levelOK, check+"|$1 can be used by $2", dir, p.name)
}

// reaches tells whether the daemon may read a directory, and write there if it has to. One
// that is not there is made when it is wanted first, if that can be.
func (d *doctor) reaches(check, user, dir string, want uint32) bool {
	p := &d.daemon
	head := check + "|$1: "
	if user != "" {
		head = check + "|user $2, $1: "
	}
	args := []string{dir, user, p.name, "", "", "read"}
	var st unix.Stat_t
	err := unix.Stat(dir, &st)
	if errors.Is(err, fs.ErrNotExist) {
		above := filepath.Dir(dir)
		for unix.Stat(above, &st) != nil && above != "/" {
			above = filepath.Dir(above)
		}
		at, _ := p.barred(above, mayWrite)
		switch {
		case check == "share", check == "users_dir":
			d.say(levelWarn, head+"it does not exist|install -d -o $3 -m 750 %1", args...)
		case at != "":
			d.say(levelFail, head+"it does not exist, and $3 may not make it|install -d -o $3 -m 750 %1", args...)
		default:
			return !d.readOnlyInside(check, above)
		}
		return false
	}
	if err != nil {
		if !d.unseen(check, dir, err) {
			args[4] = err.Error()
			d.say(levelFail, head+"$5|ls -ld %1", args...)
		}
		return false
	}
	if want == mayWrite {
		args[5] = "read and write"
	}
	at, err := p.barred(dir, want)
	args[3] = at
	if err != nil {
		args[4] = err.Error()
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		d.say(levelFail, head+"it is no directory|mv %1 %1.old && install -d -o $3 -m 750 %1", args...)
	case at == "":
		return want != mayWrite || !d.readOnlyInside(check, dir)
	case errors.Is(err, unix.EROFS):
		d.say(levelFail, head+"it is on a disk that is mounted read-only|mount -o remount,rw %1", args...)
	case at != dir:
		d.say(levelFail, head+"the daemon's user $3 may not $6 there: $4: $5|chmod o+x %4", args...)
	case int(st.Uid) == p.uid:
		d.say(levelFail, head+"the daemon's user $3 may not $6 there: $4: $5|chmod u+rwx %1", args...)
	case want == mayRead:
		d.say(levelFail, head+"the daemon's user $3 may not $6 there: $4: $5|chgrp $7 %1 && chmod g+rx %1", append(args, itoa(p.gid))...)
	case st.Mode&0o700 != 0o700:
		d.say(levelFail, head+"the daemon's user $3 may not $6 there: $4: $5|chown $3: %1 && chmod u+rwx %1", args...)
	default:
		d.say(levelFail, head+"the daemon's user $3 may not $6 there: $4: $5|chown $3: %1", args...)
	}
	return false
}

// readOnlyInside tells whether the daemon's unit keeps it from writing to a directory, by
// the mounts of the process, or by the unit's settings where none runs.
func (d *doctor) readOnlyInside(check, dir string) bool {
	p := &d.daemon
	if p.pid != 0 {
		at, options := mountOf(fileText(p.proc("mountinfo")), dir)
		if _, err := os.Stat(p.proc("root") + dir); errors.Is(err, fs.ErrNotExist) {
			d.say(levelFail, check+"|$1: the daemon's unit hides it, as ProtectHome= and PrivateTmp= do|+ProtectHome=tmpfs|+BindPaths=$1|^", dir)
			return true
		}
		if !beginsWith(options+",", "ro,") {
			return false
		}
		d.say(levelFail, check+"|$1: it is read-only for the daemon, as ProtectSystem= of its unit makes $2|+ReadWritePaths=$1|^", dir, at)
		return true
	}
	if !isText(d.unit("berth.service", "ProtectSystem"), "strict") {
		return false
	}
	for _, path := range strings.Fields(d.unit("berth.service", "ReadWritePaths") + " " + d.unit("berth.service", "BindPaths") + " /var/lib/" + d.unit("berth.service", "StateDirectory")) {
		path, _, _ = cutText(strings.TrimLeft(path, "-+"), ":")
		if dir == path || beginsWith(dir, path+"/") {
			return false
		}
	}
	d.say(levelFail, check+"|$1: it is read-only for the daemon: berth.service has ProtectSystem=strict|+ReadWritePaths=$1|^", dir)
	return true
}

// mountOf finds the mount that a path is on in a process' mountinfo, proc(5): the last of
// the longest.
func mountOf(info, path string) (at, options string) {
	for _, line := range splitText(info, "\n") {
		f := strings.Fields(line)
		if len(f) < 6 {
			continue
		}
		point := strings.ReplaceAll(f[4], `\040`, " ")
		if len(point) >= len(at) && (point == "/" || beginsWith(path+"/", point+"/")) {
			at, options = point, f[5]
		}
	}
	return at, options
}

// --- the certificate ---

func (d *doctor) checkCertificate() {
	t := d.cfg.TLS
	made := t.Certificate == ""
	again := "certbot renew --force-renewal"
	if made {
		dir := joinPath(d.cfg.Server.StateDir, tlsDirectory)
		t.Certificate, t.Key = joinPath(dir, "cert.pem"), joinPath(dir, "key.pem")
		again = "rm " + shellQuote(t.Certificate) + " " + shellQuote(t.Key) + "\n^"
	}
	certificate, err := os.ReadFile(t.Certificate)
	if made && errors.Is(err, fs.ErrNotExist) {
		d.say(levelOK, "certificate|none yet: berth makes one when it starts first")
		return
	}
	if err != nil {
		if !d.unseen("certificate", t.Certificate, err) {
			d.say(levelFail, "certificate|$1|@tls.certificate = \"/etc/berth/cert.pem\"", err.Error())
		}
		return
	}
	key, err := os.ReadFile(t.Key)
	if err == nil {
		_, err = tls.X509KeyPair(certificate, key)
	}
	if err != nil && !d.unseen("certificate.key", t.Key, err) {
		d.say(levelFail, "certificate.key|$1 and $2 do not fit together: $3|$4", t.Certificate, t.Key, err.Error(), again)
		return
	}
	var chain []*x509.Certificate
	for block, rest := pem.Decode(certificate); block != nil; block, rest = pem.Decode(rest) {
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			chain = append(chain, c)
		}
	}
	if len(chain) == 0 {
		d.say(levelFail, "certificate|$1 has no certificate in it that can be read|$2", t.Certificate, again)
		return
	}
	for _, file := range []string{t.Certificate, t.Key} {
		never := uint32(0o022)
		if file == t.Key {
			never = 0o027
		}
		// What certbot keeps closed should stay so: the daemon gets a copy.
		if at, err := d.daemon.barred(file, unix.R_OK); at != "" && at != file && !made {
			name := "certificate"
			if file == t.Key {
				name = "key"
			}
			d.say(levelFail, "certificate.readable|$1: the daemon's user $2 may not read it: $3: $4|install -o $2 -m 600 %1 %5   (as certbot's --deploy-hook too)|@tls.$6 = \"$5\"",
				file, d.daemon.name, at, err.Error(), joinPath(filepath.Dir(d.path), filepath.Base(file)), name)
			continue
		}
		d.file("certificate", file, never)
	}
	leaf := chain[0]
	d.certified(chain, again)
	if made {
		d.say(levelNote, "certificate.made|berth has made it, and nobody signed it: clients have to be told its fingerprint, or to trust it when they meet it first|@tls.certificate = \"/etc/berth/cert.pem\"|@tls.key = \"/etc/berth/key.pem\"")
		return
	}
	host, _ := os.Hostname()
	for _, name := range []string{host, d.cfg.Passive.Address} {
		if name != "" && leaf.VerifyHostname(name) != nil {
			d.say(levelNote, "certificate.names|it is for $1, and not for $2: clients that connect by that name do not trust it|certbot certonly -d %2", namesOf(leaf), name)
		}
	}
}

// certified judges a certificate, on the box and from afar: again is how to get another.
func (d *doctor) certified(chain []*x509.Certificate, again string) {
	c := chain[0]
	kind := c.PublicKeyAlgorithm.String()
	bits := rsaWeak
	if k, ok := c.PublicKey.(*rsa.PublicKey); ok {
		bits = k.N.BitLen()
		kind += " " + itoa(bits)
	}
	left := time.Until(c.NotAfter)
	args := []string{kind, shortShown(namesOf(c), maxShownText), fingerprintOf(c.Raw), itoa(int(left.Abs().Hours() / 24)),
		c.NotAfter.Format(time.DateOnly), c.NotBefore.Format(time.DateOnly), again, "", ""}
	d.say(levelOK, "certificate|$1, for $2, $3", args...)
	switch {
	case left <= 0:
		d.say(levelFail, "certificate.expiry|it expired $4 days ago, on $5|$7", args...)
	case time.Now().Before(c.NotBefore):
		d.say(levelFail, "certificate.expiry|it is valid only from $6 on: is the clock right?|timedatectl set-ntp true", args...)
	case left < expiryWarn:
		d.say(levelWarn, "certificate.expiry|it expires in $4 days, on $5: it should have been renewed|$7", args...)
	default:
		d.say(levelOK, "certificate.expiry|valid for $4 days more, until $5", args...)
	}
	if bits < rsaWeak || c.SignatureAlgorithm == x509.SHA1WithRSA || c.SignatureAlgorithm == x509.ECDSAWithSHA1 {
		d.say(levelWarn, "certificate.strength|its key or its signature is too weak for many clients|certbot certonly --key-type ecdsa")
	}
	// RFC 8446 section 4.4.2: each is signed by the next.
	for i, c := range chain[1:] {
		args[7], args[8] = itoa(i+1), shortShown(c.Subject.CommonName, maxShownName)
		if chain[i].CheckSignatureFrom(c) != nil {
			d.say(levelWarn, "certificate.chain|the chain is out of order: certificate $8 is not signed by the one behind it, $9|@tls.certificate = \"/etc/letsencrypt/live/NAME/fullchain.pem\"", args...)
			return
		}
		if time.Now().After(c.NotAfter) {
			d.say(levelWarn, "certificate.chain|a certificate of the chain has expired: $9|$7", args...)
		}
	}
	if len(chain) == 1 && len(c.IssuingCertificateURL) > 0 {
		d.say(levelWarn, "certificate.chain|the certificate of who signed it is not sent along: many clients will not trust it|@tls.certificate = \"/etc/letsencrypt/live/NAME/fullchain.pem\"")
	}
}

// --- the running daemon's pages ---

// fetchPage asks an http listener as berth health does, for any page. Under TLS any
// certificate will do: nothing secret is sent.
func (d *doctor) fetchPage(address, path string, secure bool) (status int, page string, err error) {
	conn, err := d.dial("tcp", address)
	if err != nil {
		return 0, "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(2 * doctorWait))
	if secure {
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	}
	io.WriteString(conn, "GET "+path+" HTTP/1.0\r\nUser-Agent: berth doctor\r\n\r\n")
	all, err := io.ReadAll(io.LimitReader(conn, doctorOutput))
	if err != nil {
		return 0, "", err
	}
	if status, page = httpPageOf(all); status == 0 {
		err = newError(address + ": this is no answer of HTTP")
	}
	return status, page, err
}

// httpPageOf takes an answer of HTTP apart; the status is 0 where it is none.
func httpPageOf(answer []byte) (status int, page string) {
	head, body, _ := bytes.Cut(answer, []byte("\r\n\r\n"))
	f := strings.Fields(string(head))
	if len(f) < 2 || !beginsWith(f[0], "HTTP/1.") {
		return 0, ""
	}
	return max(0, atoi(f[1])), string(body)
}

// metric is a number of the daemon's /metrics by its whole name with labels; below 0: there
// is none.
func (d *doctor) metric(name string) float64 {
	if _, rest, found := cutText(d.page, "\n"+name+" "); found {
		text, _, _ := cutText(rest, "\n")
		if v, err := strconv.ParseFloat(text, 64); err == nil {
			return v
		}
	}
	return -1
}

// stored is what the daemon says that a user stores.
func (d *doctor) stored(u *user) quota {
	return quota{int64(d.metric(`berth_quota_used_bytes{user="` + u.Name + `"}`)), int64(d.metric(`berth_quota_used_files{user="` + u.Name + `"}`))}
}

// --- quotas and disks ---

// A doctorDisk is one file system.
type doctorDisk struct {
	dev                  uint64
	path                 string // on it
	size, free, promised uint64
	files, filesFree     uint64
}

// A homeCount is what is on the disk in a home, as the ledger counts it.
type homeCount struct {
	quota
	stale  string // a staging file of long ago
	stales int
	cut    bool // the walk was not finished
	failed error
}

// checkDisks compares what the ledger says with what is there.
func (d *doctor) checkDisks() {
	budget, until := countNames, time.Now().Add(countTime)
	var disks []*doctorDisk
	see := func(path string) *doctorDisk {
		var st unix.Stat_t
		for unix.Stat(path, &st) != nil && path != "/" {
			path = filepath.Dir(path)
		}
		for _, k := range disks {
			if k.dev == uint64(st.Dev) {
				return k
			}
		}
		k := &doctorDisk{dev: uint64(st.Dev), path: path}
		var s unix.Statfs_t
		if unix.Statfs(path, &s) == nil {
			size := uint64(s.Bsize)
			k.size, k.free, k.files, k.filesFree = s.Blocks*size, s.Bavail*size, s.Files, s.Ffree
		}
		disks = append(disks, k)
		return k
	}
	see(d.cfg.Server.StateDir)
	if d.page != "" { // else none runs, or it would not tell
		lines, _ := (&userCommand{local: d.cfg.Listen.Local}).askUsage()
		for _, l := range lines {
			if l.State == usageElsewhere {
				d.say(levelFail, "ledger.elsewhere|user $1: another berth counts the home $2, so he is refused here; its log here names that one|quota = \"filesystem\"   in $3, and there|or: end that berth",
					l.User, l.Home, joinPath(d.cfg.Server.UsersDir, l.User+userSuffix))
			}
		}
	}
	kept := d.kept()
	walked := map[string]*homeCount{}
	good, judged, cut := 0, 0, 0
	for _, u := range d.users {
		k := see(u.Home)
		k.promised += uint64(u.QuotaBytes)
		if k.size > 0 && uint64(u.QuotaBytes) > k.size {
			d.say(levelWarn, "quota.size|user $1: the quota of $2 is more than the whole disk of $3 has, $4|berth user set $1 --quota $5$c",
				u.Name, humanBytes(int64(u.QuotaBytes)), u.Home, humanBytes(int64(k.size)), byteSize(k.size>>20*9/10<<20).String())
		}
		c := walked[u.Home]
		if c == nil {
			c = d.countHome(u.Home, &budget, until)
			walked[u.Home] = c
		}
		switch {
		case c.cut:
			cut++
		case c.failed == nil:
			judged++
			if d.judgeLedger(u, c, kept) {
				good++
			}
		case !errors.Is(c.failed, fs.ErrNotExist) && !d.unseen("ledger", u.Home, c.failed):
			d.say(levelWarn, "ledger|user $1: the home cannot be counted: $2|ls -la %3", u.Name, c.failed.Error(), u.Home)
		}
		if c.stales > 0 {
			d.say(levelNote, "staging|user $1: $2 staging files are left over from more than a day ago, as $3|find %4 -name '.berth-up-*' -mtime +0 -delete", u.Name, itoa(c.stales), c.stale, u.Home)
		}
	}
	if good > 0 {
		d.say(levelOK, "ledger|homes with as many bytes and files as the ledger says: $1 of $2", itoa(good), itoa(judged))
	}
	if cut > 0 {
		d.say(levelNote, "ledger.cut|homes not counted to the end, as that takes long: $1|berth doctor --deep$c", itoa(cut))
	}
	for _, k := range disks {
		args := []string{k.path, humanBytes(int64(k.free)), humanBytes(int64(k.size)), humanBytes(int64(k.promised)), strconv.FormatUint(k.filesFree, 10)}
		switch {
		case k.size == 0:
		case k.free == 0:
			d.say(levelFail, "disk.free|the disk of $1 is full: none of $3 is free|du -xhd2 %1", args...)
		case k.free < k.size/diskLow:
			d.say(levelWarn, "disk.free|the disk of $1 is nearly full: $2 of $3 are free|du -xhd2 %1", args...)
		default:
			d.say(levelOK, "disk.free|the disk of $1 has $2 of $3 free", args...)
		}
		if k.files > 0 && k.filesFree < k.files/diskLow {
			l := levelWarn
			if k.filesFree == 0 {
				l = levelFail
			}
			d.say(l, "disk.inodes|the disk of $1 has room for $5 files more|df -i %1", args...)
		}
		if k.size > 0 && k.promised > k.size {
			d.say(levelNote, "quota.sum|the quotas on the disk of $1 are $4 together, and it has $3|berth user list$c", args...)
		}
	}
}

// kept is what the ledger's file has by home; nil while a daemon runs, who knows better.
func (d *doctor) kept() map[string]quota {
	if d.daemon.pid != 0 {
		return nil
	}
	file := joinPath(d.cfg.Server.StateDir, ledgerName)
	entries, clean, err := readLedger(file)
	switch {
	case errors.Is(err, fs.ErrNotExist), d.unseen("ledger", file, err):
	case err != nil:
		d.say(levelWarn, "ledger|$1 cannot be read ($2): all homes are counted at the next start|mv %1 %1.bad", file, err.Error())
	case !clean:
		d.say(levelNote, "ledger|berth did not end in order the last time: all homes are counted at the next start|^")
	default:
		all := map[string]quota{}
		for _, e := range entries {
			all[e.Home] = quota{e.Bytes, e.Files}
		}
		return all
	}
	return nil
}

// judgeLedger compares one home. What a transfer just changes is not held against it.
func (d *doctor) judgeLedger(u *user, c *homeCount, kept map[string]quota) bool {
	if u.Quota == "filesystem" {
		return false
	}
	for _, s := range u.Shares {
		if s.Write { // what is his there is in the account too
			return false
		}
	}
	has, ok := kept[u.Home]
	if !ok && kept == nil {
		has = d.stored(u)
		ok = has.bytes >= 0 && has.files >= 0
	}
	if !ok || has == c.quota {
		return ok
	}
	if kept == nil && d.readPage(false) && d.stored(u) != has {
		return false // it moves
	}
	d.say(levelWarn, "ledger|user $1: the ledger has $2 bytes in $3 files, and on the disk are $4 in $5|berth user scan $1$c", u.Name,
		strconv.FormatInt(has.bytes, 10), strconv.FormatInt(has.files, 10), strconv.FormatInt(c.bytes, 10), strconv.FormatInt(c.files, 10))
	return false
}

// countHome counts as a sweep does: every name is a file, regular ones have their size,
// and staging files are in the ledger by what is reserved for them.
func (d *doctor) countHome(home string, budget *int, until time.Time) *homeCount {
	c := &homeCount{}
	info, err := os.Lstat(home)
	if err != nil || !info.IsDir() {
		c.failed = err
		return c
	}
	c.failed = d.countDir(c, home, budget, until)
	return c
}

// countDir counts what is in a directory and below it.
func (d *doctor) countDir(c *homeCount, dir string, budget *int, until time.Time) error {
	names, err := namesIn(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		*budget--
		if d.ctx.Err() != nil || !d.inv.on("deep") && (*budget < 0 || time.Now().After(until)) {
			c.cut = true
		}
		if c.cut {
			return nil
		}
		path := joinPath(dir, name)
		info, err := os.Lstat(path)
		stage := beginsWith(name, stagePrefix)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // it went meanwhile
		case err != nil:
			return err
		case isReserved(name) && !stage && !beginsWith(name, partialPrefix):
			continue
		case stage:
			if time.Since(info.ModTime()) > stagingOld {
				c.stale = path
				c.stales++
			}
		default:
			c.files++
			if info.Mode().IsRegular() {
				c.bytes = addSat(c.bytes, info.Size())
			}
		}
		if info.IsDir() {
			if err := d.countDir(c, path, budget, until); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}
