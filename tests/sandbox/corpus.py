"""Programs whose system calls a sandbox must allow: what CPython and the scientific packages do in honest code.

`record_calls.py` records their calls; `test_calls.py` runs them in the sandbox. Each prints "done".
"""

from __future__ import annotations

PROGRAMS = {
    "imports": """
import argparse, array, ast, asyncio, base64, bisect, calendar, cmath, collections, concurrent.futures, contextlib
import copy, csv, ctypes, dataclasses, datetime, decimal, difflib, doctest, email, enum, fractions, functools, glob
import gzip, hashlib, heapq, html, importlib, inspect, io, itertools, json, locale, logging, lzma, math, mmap
import multiprocessing, operator, os, pathlib, pickle, platform, pprint, queue, random, re, secrets, select, selectors
import shelve, shutil, signal, socket, sqlite3, ssl, statistics, string, struct, subprocess, sys, tarfile, tempfile
import textwrap, threading, time, timeit, tokenize, traceback, types, typing, unittest, urllib.request, uuid, warnings
import xml.etree.ElementTree, zipfile, zlib, zoneinfo
platform.uname(), os.urandom(8), random.SystemRandom().random(), uuid.uuid4(), os.cpu_count()
time.get_clock_info('time')
print(zoneinfo.ZoneInfo('UTC') and 'done')
""",
    "files": """
import glob, gzip, mmap, os, pathlib, shelve, shutil, tarfile, tempfile, zipfile
with open('f', 'w') as file:
    file.write('x' * 100000)
with open('f', 'r+b') as file:
    file.seek(5); file.truncate(50000); file.flush(); os.fsync(file.fileno()); os.fdatasync(file.fileno())
    os.pwrite(file.fileno(), b'abc', 0), os.pread(file.fileno(), 3, 0), os.fchmod(file.fileno(), 0o600)
    os.posix_fallocate(file.fileno(), 0, 100), os.posix_fadvise(file.fileno(), 0, 0, 0)
    os.writev(file.fileno(), [b'q']), os.readv(file.fileno(), [bytearray(3)])
    os.pwritev(file.fileno(), [b'q'], 0), os.preadv(file.fileno(), [bytearray(3)], 0)
shutil.copy2('f', 'g'), shutil.copyfile('f', 'h'), os.rename('g', 'i'), os.replace('i', 'j'), os.link('f', 'l')
os.symlink('f', 's'), os.readlink('s'), os.utime('f', (1, 1)), os.chmod('f', 0o600), os.truncate('f', 10), os.stat('f')
os.lstat('s'), os.access('f', os.R_OK), os.mkdir('d'), os.rmdir('d'), os.makedirs('x/y/z'), shutil.rmtree('x')
shutil.copytree('.', 'tree'), list(os.walk('.')), glob.glob('*'), os.unlink('j'), os.statvfs('.'), os.getcwd()
os.chown('f', os.getuid(), os.getgid()), os.listxattr('f'), os.umask(0o22), os.chdir('tree'), os.chdir('..')
folder = os.open('.', os.O_RDONLY); os.fchdir(folder); list(os.scandir(folder)); os.dup(folder); os.close(folder)
source, target = os.open('h', os.O_RDONLY), os.open('t', os.O_CREAT | os.O_RDWR)
os.sendfile(target, source, 0, 10), os.copy_file_range(source, target, 10), os.dup2(source, 9), os.set_blocking(9, True)
with mmap.mmap(source, 0, access=mmap.ACCESS_READ) as page:
    page[:10]; page.madvise(mmap.MADV_WILLNEED)
with mmap.mmap(target, 10) as page:
    page[:2] = b'ab'; page.flush()
page = mmap.mmap(-1, 8192); page.resize(16384)
with zipfile.ZipFile('z.zip', 'w') as file: file.write('h')
with tarfile.open('t.tgz', 'w:gz') as file: file.add('h')
with gzip.open('q.gz', 'wb') as file: file.write(b'1')
shelve.open('shelf').close(); pathlib.Path('p').touch(); pathlib.Path('p').chmod(0o600)
with tempfile.NamedTemporaryFile() as file: file.write(b'1')
with tempfile.TemporaryDirectory(): pass
tempfile.TemporaryFile().close()
print('done')
""",
    "database": """
import sqlite3
base = sqlite3.connect('a.db')
base.execute('create table t(a)'), base.execute('insert into t values(1)'), base.commit()
base.execute('insert into t values(2)'), base.commit()
print(base.execute('select sum(a) from t').fetchone() == (3,) and 'done')
""",
    "threads": """
import asyncio, concurrent.futures, queue, select, selectors, socket, os, threading, time
async def main():
    await asyncio.sleep(0.01)
    await asyncio.to_thread(time.sleep, 0.01)
    await asyncio.gather(*(asyncio.sleep(0) for _ in range(5)))
    await asyncio.wait_for(asyncio.sleep(0), 1)
asyncio.run(main())
with concurrent.futures.ThreadPoolExecutor(4) as pool: list(pool.map(abs, range(50)))
timer = threading.Timer(0.01, abs, (1,)); timer.start(); timer.join()
condition = threading.Condition()
with condition: condition.wait(0.01)
queue.Queue().put(1)
ours, theirs = socket.socketpair()
ours.send(b'x'), theirs.recv(1), ours.settimeout(1), ours.sendall(b'yy'), theirs.recv_into(bytearray(2))
ours.getsockname(), ours.getpeername(), ours.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE), theirs.setblocking(False)
ours.shutdown(socket.SHUT_WR), ours.close(), theirs.close()
out, into = os.pipe(); os.write(into, b'x'); select.select([out], [], [], 0.1); select.poll().poll(1)
poll = select.epoll(); poll.register(out); poll.poll(0.01); selectors.DefaultSelector()
print('done')
""",
    "process": """
import faulthandler, os, resource, signal, sys, time
signal.signal(signal.SIGALRM, lambda *_: None); signal.setitimer(signal.ITIMER_REAL, 0.01); time.sleep(0.02)
signal.alarm(1), signal.alarm(0), signal.getitimer(0), signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
os.kill(os.getpid(), signal.SIGUSR1); signal.sigpending(); signal.sigtimedwait([signal.SIGUSR1], 1)
signal.raise_signal(signal.SIGALRM); signal.siginterrupt(signal.SIGUSR2, False); faulthandler.enable(open('/dev/null'))
resource.getrusage(resource.RUSAGE_SELF), resource.getrlimit(resource.RLIMIT_AS), os.times(), os.uname()
os.getloadavg() if os.path.exists('/proc/loadavg') else 0
os.sched_getaffinity(0), os.getpgid(0), os.getsid(0), os.getpgrp(), os.getppid(), os.sched_yield(), os.getgroups()
os.getresuid(), os.getresgid(), os.geteuid(), os.getegid(), os.isatty(0), os.getrandom(4), sys.stdin.read()
time.process_time(), time.thread_time(), time.clock_getres(time.CLOCK_MONOTONIC), time.time(), time.monotonic()
print('done')
""",
    "numpy": """
import numpy
numpy.random.seed(1); numpy.linalg.svd(numpy.random.rand(50, 50)); numpy.linalg.eig(numpy.random.rand(40, 40))
numpy.fft.fft(numpy.ones(1000)); numpy.random.default_rng().normal(size=10); numpy.save('n.npy', numpy.arange(1000))
numpy.load('n.npy', mmap_mode='r')
print('done')
""",
    "sympy": """
import sympy
x = sympy.symbols('x')
sympy.integrate(sympy.exp(-x**2), (x, -sympy.oo, sympy.oo)), sympy.solve(x**3 - 1, x), sympy.factorint(360)
print('done')
""",
    "pandas": """
import pandas
frame = pandas.DataFrame({'a': [1, 2, 3], 'b': list('xyz')})
frame.to_csv('d.csv'), pandas.read_csv('d.csv'), frame.groupby('b').sum(), frame.to_json('d.json')
pandas.date_range('2020', '2021', periods=3).tz_localize('UTC')
print('done')
""",
    "matplotlib": """
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plot
plot.plot([1, 2, 3])
for name in ('p.png', 'p.svg', 'p.pdf'): plot.savefig(name)
print('done')
""",
}
