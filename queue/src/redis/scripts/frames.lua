-- ARGV: time, id, attempt seen so far or 0, next piece, how many. Reads only. Answers {standing of the job
-- (open, done or unknown), attempt, next piece, pieces, result or an empty text}.
local id, attempt, seq, max = ARGV[2], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local standing = 'unknown'
if redis.call('HEXISTS', key('life'), id) == 1 then
  standing = 'open'
elseif remembered(redis.call('HGET', key('done'), id)) then
  standing = 'done'
end
local name = key('chunks:' .. id)
local found = redis.call('HMGET', name, 'attempt', 'expires')
local latest = tonumber(found[2] or 0) > now and tonumber(found[1]) or 0
local pieces = {}
if latest > 0 then
  if latest ~= attempt then
    -- What was read of another attempt is void.
    if attempt ~= 0 then seq = '0' end
    attempt = latest
  end
  seq = tonumber(seq)
  local names = {}
  for nth = 1, max do names[nth] = 'piece:' .. whole(seq + nth - 1) end
  for _, piece in ipairs(redis.call('HMGET', name, unpack(names))) do
    if not piece then break end
    pieces[#pieces + 1] = piece
  end
end
local result = ''
if #pieces < max then
  local outcome, part = fate_of(id)
  if outcome then result = redis.call('HGET', key(part), id) or '' end
end
return { standing, attempt, tonumber(seq), pieces, result }
